//! The closed sets of words that metrics are labelled with.

/// An enum whose variants are values of a label.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$of:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[$of])* $variant),*
        }

        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value of the label.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What kind of kernel work was done.
    Work {
        /// Members added to and removed from sets.
        Members = "members",
        /// Sets and chains made what they should be.
        Rules = "rules",
    }
}

words! {
    /// How a piece of kernel work ended.
    Outcome {
        /// Something was written.
        Changed = "changed",
        /// The kernel was right already.
        Unchanged = "unchanged",
        /// An error; it is tried again.
        Failed = "failed",
    }
}

words! {
    /// What somebody else changed, and was made right again.
    Repair {
        /// Chains of ours, or our jumps to them.
        Rules = "rules",
        /// Sets of ours, as far as their headers show.
        Sets = "sets",
        /// Members of sets, behind headers that looked right.
        Members = "members",
        /// Something that could not be looked at in part, so that all was compared.
        Unknown = "unknown",
    }
}

words! {
    /// Why a denial is not in the log.
    LeftOut {
        /// The same flow made a line a moment ago.
        Repeated = "repeated",
        /// More came than the log takes.
        Rate = "rate",
        /// The kernel counted it, but had no room to hand it over.
        Lost = "lost",
    }
}

words! {
    /// What became of an Event for Kubernetes.
    Reported {
        /// It is on the API server.
        Sent = "sent",
        /// Another node reported the same.
        Known = "known",
        /// The API server did not take it, or not in time.
        Failed = "failed",
        /// Too many at once: it is in the log only.
        LeftOut = "left_out",
    }
}
