//! `Noise_IK_25519_ChaChaPoly_BLAKE2s`, both ends, ending in two raw transport keys.
//!
//! ```text
//! initiation  | version: u16 BE | 1 | 96: u16 BE | e (32) | enc(s) (48) | tag (16) |   101 bytes
//! response    | 2 | 48: u16 BE | e (32) | tag (16) |                                   51 bytes
//! error       | 3 | len: u16 BE | text, not authenticated |
//! ```
//!
//! The prologue is `Tailscale Control Protocol v` and the decimal version. snow does the handshake
//! but not the rejection of low-order points, so that is done here. Source: control.md 2.3.

use keys::{MachinePrivate, MachinePublic};
use snow::{Builder, HandshakeState, params::NoiseParams};
use zeroize::Zeroizing;

use crate::record::{Opener, Sealer};

/// Length of the client's message, in bytes.
pub const INITIATION_LEN: usize = 101;
/// Length of the server's message, in bytes.
pub const RESPONSE_LEN: usize = 51;
/// Length of type and length in front of everything the server sends, in bytes.
pub const HEADER_LEN: usize = 3;
/// Longest error text that is kept, in bytes.
pub const MAX_ERROR_LEN: usize = 512;

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const INITIATION_HEADER: [u8; 3] = [1, 0, 96];
const RESPONSE_HEADER: [u8; 3] = [2, 0, 48];
const ERROR_TYPE: u8 = 3;
const INITIATION_BODY_LEN: usize = 96;
const KEY_LEN: usize = 32;

/// Why a handshake failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NoiseError {
    /// A message with the wrong type or length.
    #[error("not a Noise {0} of this protocol")]
    Malformed(&'static str),
    /// A message did not decrypt: another key or another protocol version.
    #[error("Noise handshake failed: the other side has another key or protocol version")]
    Handshake,
    /// A key of low order, with which anybody could pose as anybody.
    #[error("refused a low-order public key")]
    LowOrderKey,
    /// The server refused and said why; the text is not authenticated.
    #[error("the server refused the Noise handshake, saying: {0}")]
    Refused(String),
}

/// What both ends hold after the handshake.
#[derive(Debug)]
pub struct Session {
    /// For what we send.
    pub sealer: Sealer,
    /// For what we receive.
    pub opener: Opener,
    /// The other side's static key.
    pub remote: MachinePublic,
    /// The client's protocol version, equal to its capability version.
    pub version: u16,
    /// Hash of the whole handshake, the same on both ends.
    pub handshake_hash: [u8; 32],
}

/// The client's half of a handshake, between initiation and response.
#[derive(Debug)]
pub struct Initiator {
    state: HandshakeState,
    server: MachinePublic,
    version: u16,
}

impl Initiator {
    /// Starts a handshake with the owner of `server`; returns the initiation to send.
    ///
    /// # Errors
    ///
    /// [`NoiseError::LowOrderKey`] if `server` is zero or of low order.
    pub fn new(
        machine: &MachinePrivate,
        server: &MachinePublic,
        version: u16,
    ) -> Result<(Self, [u8; INITIATION_LEN]), NoiseError> {
        if server.is_low_order() {
            return Err(NoiseError::LowOrderKey);
        }
        let mut state = with_builder(machine, version, |builder| {
            builder
                .remote_public_key(server.as_bytes())?
                .build_initiator()
        })?;
        let mut initiation = [0; INITIATION_LEN];
        initiation[..2].copy_from_slice(&version.to_be_bytes());
        initiation[2..5].copy_from_slice(&INITIATION_HEADER);
        let written = state
            .write_message(&[], &mut initiation[5..])
            .map_err(handshake)?;
        if written != INITIATION_BODY_LEN {
            return Err(NoiseError::Malformed("initiation"));
        }
        Ok((
            Self {
                state,
                server: *server,
                version,
            },
            initiation,
        ))
    }

    /// Ends the handshake with the server's answer: [`server_message_len`] bytes.
    ///
    /// # Errors
    ///
    /// [`NoiseError`]; [`NoiseError::Refused`] carries a text that anybody on the way may have
    /// written.
    pub fn finish(mut self, response: &[u8]) -> Result<Session, NoiseError> {
        if response.first() == Some(&ERROR_TYPE) {
            return Err(NoiseError::Refused(printable(
                response.get(HEADER_LEN..).unwrap_or(&[]),
            )));
        }
        let body = response
            .strip_prefix(&RESPONSE_HEADER)
            .filter(|body| body.len() == RESPONSE_LEN - HEADER_LEN)
            .ok_or(NoiseError::Malformed("response"))?;
        refuse_low_order(&body[..KEY_LEN])?;
        self.state.read_message(body, &mut []).map_err(handshake)?;
        Ok(session(
            self.state,
            self.server,
            self.version,
            Role::Initiator,
        ))
    }
}

/// How many bytes the server's first message has, told from its first [`HEADER_LEN`] bytes.
///
/// # Errors
///
/// [`NoiseError::Malformed`] if it is neither a response nor an error of bounded length.
pub fn server_message_len(header: [u8; HEADER_LEN]) -> Result<usize, NoiseError> {
    let len = usize::from(u16::from_be_bytes([header[1], header[2]]));
    match header {
        RESPONSE_HEADER => Ok(RESPONSE_LEN),
        [ERROR_TYPE, ..] if len <= MAX_ERROR_LEN => Ok(HEADER_LEN + len),
        _ => Err(NoiseError::Malformed("response")),
    }
}

/// The server's half of a handshake, between initiation and response.
#[derive(Debug)]
pub struct Responder {
    state: HandshakeState,
    machine: MachinePublic,
    version: u16,
}

impl Responder {
    /// Reads an initiation with the server's key.
    ///
    /// # Errors
    ///
    /// [`NoiseError`] if it is malformed, meant for another key, or holds a low-order key.
    pub fn new(
        server: &MachinePrivate,
        initiation: &[u8; INITIATION_LEN],
    ) -> Result<Self, NoiseError> {
        let version = u16::from_be_bytes([initiation[0], initiation[1]]);
        let body = initiation[2..]
            .strip_prefix(&INITIATION_HEADER)
            .ok_or(NoiseError::Malformed("initiation"))?;
        refuse_low_order(&body[..KEY_LEN])?;
        let mut state = with_builder(server, version, |builder| builder.build_responder())?;
        state.read_message(body, &mut []).map_err(handshake)?;
        let machine = state
            .get_remote_static()
            .and_then(|key| <[u8; KEY_LEN]>::try_from(key).ok())
            .map(MachinePublic::from_bytes)
            .ok_or(NoiseError::Handshake)?;
        if machine.is_low_order() {
            return Err(NoiseError::LowOrderKey);
        }
        Ok(Self {
            state,
            machine,
            version,
        })
    }

    /// The client's machine key, proved by the initiation (which may be a replay until the first
    /// record opens).
    #[must_use]
    pub fn machine(&self) -> MachinePublic {
        self.machine
    }

    /// The client's protocol version.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Ends the handshake; returns the response to send.
    ///
    /// # Errors
    ///
    /// [`NoiseError::Handshake`] if the system gives no random numbers.
    pub fn respond(mut self) -> Result<([u8; RESPONSE_LEN], Session), NoiseError> {
        let mut response = [0; RESPONSE_LEN];
        response[..HEADER_LEN].copy_from_slice(&RESPONSE_HEADER);
        self.state
            .write_message(&[], &mut response[HEADER_LEN..])
            .map_err(handshake)?;
        Ok((
            response,
            session(self.state, self.machine, self.version, Role::Responder),
        ))
    }
}

/// The message with which a server refuses a handshake; `text` is cut to [`MAX_ERROR_LEN`] bytes.
#[must_use]
pub fn error_message(text: &str) -> Vec<u8> {
    let text = &text[..text.floor_char_boundary(MAX_ERROR_LEN)];
    let len = u16::try_from(text.len()).unwrap_or(0);
    let mut message = vec![ERROR_TYPE];
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(text.as_bytes());
    message
}

enum Role {
    Initiator,
    Responder,
}

fn with_builder(
    machine: &MachinePrivate,
    version: u16,
    build: impl FnOnce(Builder<'_>) -> Result<HandshakeState, snow::Error>,
) -> Result<HandshakeState, NoiseError> {
    let params: NoiseParams = PATTERN.parse().map_err(handshake)?;
    let prologue = format!("Tailscale Control Protocol v{version}");
    Builder::new(params)
        .prologue(prologue.as_bytes())
        .and_then(|builder| builder.local_private_key(machine.as_bytes()))
        .and_then(build)
        .map_err(handshake)
}

fn session(mut state: HandshakeState, remote: MachinePublic, version: u16, role: Role) -> Session {
    let mut handshake_hash = [0; 32];
    handshake_hash.copy_from_slice(&state.get_handshake_hash()[..32]);
    let (to_server, to_client) = state.dangerously_get_raw_split();
    let (to_server, to_client) = (Zeroizing::new(to_server), Zeroizing::new(to_client));
    let (send, receive) = match role {
        Role::Initiator => (to_server, to_client),
        Role::Responder => (to_client, to_server),
    };
    Session {
        sealer: Sealer::new(&send),
        opener: Opener::new(&receive),
        remote,
        version,
        handshake_hash,
    }
}

fn refuse_low_order(key: &[u8]) -> Result<(), NoiseError> {
    let key: [u8; KEY_LEN] = key.try_into().map_err(|_| NoiseError::LowOrderKey)?;
    if MachinePublic::from_bytes(key).is_low_order() {
        return Err(NoiseError::LowOrderKey);
    }
    Ok(())
}

/// Every error of snow means the same to an operator; its own text says less.
fn handshake(_: snow::Error) -> NoiseError {
    NoiseError::Handshake
}

/// Untrusted text made fit for a terminal.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_ERROR_LEN)]);
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
