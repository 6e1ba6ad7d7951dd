//! Rebuilds the crate when a template is added or removed: they are embedded.

fn main() {
    println!("cargo::rerun-if-changed=../../templates");
}
