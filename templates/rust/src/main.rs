//! The program around a handler.

fn main() {
    if let Err(error) = updraft::serve(function::handle) {
        eprintln!("cannot listen: {}", error);
        std::process::exit(1);
    }
}
