//! Stages and status codes of the login phase (RFC 7143 §11.12, §11.13).

/// Flag of requests and responses: transit to the next stage.
pub const TRANSIT: u8 = 0x80;
/// Flag: the text continues in the next PDU.
pub const CONTINUE: u8 = 0x40;

/// Stage of security negotiation.
pub const SECURITY: u8 = 0;
/// Stage of operational negotiation.
pub const OPERATIONAL: u8 = 1;
/// The full feature phase.
pub const FULL_FEATURE: u8 = 3;

/// Returns the current and the next stage in `flags`.
#[must_use]
pub fn stages(flags: u8) -> (u8, u8) {
    (flags >> 2 & 3, flags & 3)
}

/// Status class and detail of a response (RFC 7143 §11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u16);

impl Status {
    pub const SUCCESS: Self = Self(0x0000);
    pub const INITIATOR_ERROR: Self = Self(0x0200);
    pub const AUTHENTICATION_FAILURE: Self = Self(0x0201);
    pub const FORBIDDEN: Self = Self(0x0202);
    pub const NOT_FOUND: Self = Self(0x0203);
    pub const UNSUPPORTED_VERSION: Self = Self(0x0205);
    pub const TOO_MANY_CONNECTIONS: Self = Self(0x0206);
    pub const MISSING_PARAMETER: Self = Self(0x0207);
    pub const CANNOT_INCLUDE: Self = Self(0x0208);
    pub const SESSION_TYPE: Self = Self(0x0209);
    pub const NO_SESSION: Self = Self(0x020a);
    pub const INVALID_REQUEST: Self = Self(0x020b);
    pub const TARGET_ERROR: Self = Self(0x0300);
    pub const UNAVAILABLE: Self = Self(0x0301);
    pub const OUT_OF_RESOURCES: Self = Self(0x0302);

    /// Returns class and detail.
    #[must_use]
    pub fn bytes(self) -> [u8; 2] {
        self.0.to_be_bytes()
    }
}
