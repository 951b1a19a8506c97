//! `GET /machine/ssh/action/…`: may a session in, of which the policy says `check`?

use control_proto::tailcfg::SshAction;
use keys::MachinePublic;

use super::{Control, MapRefusal};
use crate::model::NodeId;

/// What the person at the other end reads.
const NOT_SERVED: &str = "This server cannot ask users to confirm SSH sessions yet, so sessions \
                          that must be confirmed (\"action\": \"check\") are refused.\n";

impl Control {
    /// What becomes of a session on the node `destination` that its user must confirm (control.md
    /// 5.6): it is refused, since nobody can be asked. An HTTP error would be no refusal: nodes ask
    /// again after one, for half an hour, while the session hangs.
    ///
    /// # Errors
    ///
    /// The machine that asks is not the destination.
    pub fn ssh_action(
        &self,
        machine: MachinePublic,
        destination: NodeId,
    ) -> Result<SshAction, MapRefusal> {
        let found = self.engine.node(destination);
        if found.is_none_or(|view| view.node.machine != machine) {
            return Err(MapRefusal::UnknownNode);
        }
        Ok(SshAction {
            reject: true,
            message: NOT_SERVED.to_owned(),
            ..SshAction::default()
        })
    }
}
