//! The address daemon as a library, generic over the cloud.
