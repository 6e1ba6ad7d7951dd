//! What a file of sealed secrets may hold.

/// Most of everything that a stranger's file may hold, checked before any key is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub file_bytes: usize,
    /// Documents of the file, those inside lists included.
    pub documents: usize,
    /// Items of one document.
    pub items: usize,
    /// Bytes of one sealed value, decoded.
    pub value_bytes: usize,
    /// Bytes of all sealed values of one document, decoded.
    pub secret_bytes: usize,
}

impl Limits {
    /// Kubernetes' own bounds: what a cluster takes, we take.
    pub const fn usual() -> Self {
        Self {
            file_bytes: 8 << 20,
            documents: 100,
            items: 1000,
            value_bytes: (1 << 20) + 4096,
            secret_bytes: 1536 << 10,
        }
    }
}
