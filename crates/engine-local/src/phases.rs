//! How long each step of a replica's start took.

use std::time::Duration;

/// The steps, in their order. What a start waits for beside them is in no step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Phases {
    /// Finding the image, and mounting or fetching it where it must be.
    pub(crate) image: Duration,
    /// Taking a network namespace, or making one.
    pub(crate) network: Duration,
    /// Writing down what the container is.
    pub(crate) bundle: Duration,
    /// Laying the replica's own layer over the image, in a mount namespace.
    pub(crate) mount: Duration,
    /// The runtime's part, up to the program's own start.
    pub(crate) runtime: Duration,
    /// The program's part, until it answers.
    pub(crate) ready: Duration,
}

impl Phases {
    /// The steps by name.
    pub(crate) fn all(&self) -> [(&'static str, Duration); 6] {
        [
            ("image", self.image),
            ("netns", self.network),
            ("bundle", self.bundle),
            ("mount", self.mount),
            ("runtime", self.runtime),
            ("ready", self.ready),
        ]
    }
}
