//! The shipped ipamd: the library on the AWS SDK and instance metadata.

fn main() {}
