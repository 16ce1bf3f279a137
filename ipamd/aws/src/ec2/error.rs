//! What EC2's client calls an error, sorted by what one can do about it.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use selvage_ipamd_core::cloud::{CloudError, Operation};

use selvage_ipamd::chain::chain;

/// The SDK's error as the daemon wants it.
///
/// - An answer with a code is classified by the code, whatever else it says.
/// - An answer without one (a proxy's page, an empty body) is classified by its HTTP status.
/// - A good status with a body that cannot be read may have been done.
/// - No answer may have been done, unless nothing was sent (no credentials, no valid request).
pub(super) fn cloud_error<E>(operation: Operation, error: SdkError<E, HttpResponse>) -> CloudError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    if let Some(code) = error.code() {
        let message = error.message().unwrap_or("no message").to_owned();
        return CloudError::from_code(operation, code, message, status);
    }
    match (&error, status) {
        (SdkError::ServiceError(_) | SdkError::ResponseError(_), Some(status)) if status >= 400 => {
            CloudError::from_code(
                operation,
                &format!("HTTP {status}"),
                "an answer without an error code",
                Some(status),
            )
        }
        (SdkError::ServiceError(_) | SdkError::ResponseError(_), _) => CloudError::unknown(
            operation,
            format!("an answer that cannot be read: {}", chain(&error)),
        ),
        (SdkError::ConstructionFailure(_), _) => CloudError::refused(operation, chain(&error)),
        // Credentials are fetched before anything is sent. (Nothing else may be concluded from what kind of dispatch
        // failure it is: a connection that ends before the answer is of kind "other", like missing credentials.)
        (SdkError::DispatchFailure(_), _) if is_caused_by::<CredentialsError>(&error) => {
            CloudError::refused(operation, format!("not sent: {}", chain(&error)))
        }
        (SdkError::TimeoutError(_), _) => {
            CloudError::unknown(operation, format!("no answer in time: {}", chain(&error)))
        }
        // `SdkError` is open: what is new in it may have been done.
        (_, _) => CloudError::unknown(operation, format!("no answer: {}", chain(&error))),
    }
}

/// Whether an error of type `T` is in the chain.
fn is_caused_by<T: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.is::<T>() {
            return true;
        }
        next = cause.source();
    }
    false
}
