//! A NATS server for a cloud that keeps its calls there: the one of the tests of `queue-nats`.

#[path = "../../crates/queue-nats/tests/nats/server.rs"]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
#[expect(dead_code, reason = "the tests of `queue-nats` ask it for more")]
mod server;

/// A running NATS server with `JetStream`, on a free port and in a folder of its own; dropped, it is
/// killed and its folder goes.
#[derive(Debug)]
pub struct Nats(server::NatsServer);

impl Nats {
    /// Starts a server.
    ///
    /// # Panics
    /// When it does not come up within a minute.
    pub fn start() -> Self {
        Self(server::NatsServer::start())
    }

    /// Where it is, such as `nats://127.0.0.1:4222`; the same after [`Self::resume`].
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Ends it without giving it a chance to say goodbye.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Starts it again with what it had stored.
    ///
    /// # Panics
    /// When it does not come up within a minute.
    pub fn resume(&mut self) {
        self.0.resume();
    }
}
