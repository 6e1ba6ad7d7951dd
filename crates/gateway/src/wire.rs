//! The JSON of the OpenFaaS API: exact names, what is left out when empty, and lenient reading.
//!
//! Requests are read as the clients expect of Go: keys in any case, unknown keys ignored, `null`
//! for "not given". A value of the wrong type is refused with the field's name. These types are
//! the wire's alone; they are converted to the model's at once.

mod decode;
mod request;
mod response;

pub use decode::DecodeError;
pub use request::{
    DeleteFunctionRequest, FunctionDeployment, FunctionNamespace, Resources, ScaleServiceRequest,
    Secret,
};
pub use response::{
    FunctionStatus, Info, LogMessage, NamespaceStatus, Provider, SecretEntry, Usage, VersionInfo,
};
