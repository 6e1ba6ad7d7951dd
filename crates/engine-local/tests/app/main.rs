//! The function that the conformance tests run. Built with nothing but the standard library, so
//! that its image is three files.

fn main() {
    println!("placeholder");
}
