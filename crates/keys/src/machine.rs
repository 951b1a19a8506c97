//! Machine keys: one per device installation, the Noise identity towards the coordination server.

use crate::{secret::private_key, text};

text::public_key! {
    /// Public machine key (`mkey:`); also the form of the coordination server's own Noise key.
    MachinePublic, "mkey:", text::short_base64
}
text::point!(MachinePublic);

private_key! {
    /// Private machine key; never sent anywhere, wiped from memory when dropped.
    MachinePrivate, MachinePublic
}
