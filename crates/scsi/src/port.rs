//! The target port through which a logical unit is reached.

/// Names and numbers of the target port and the target device, which the transport defines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Version descriptor of the transport's standard: 0960h for iSCSI, 0 for none.
    pub standard: u16,
    /// Protocol identifier of the designators of the port: 5 for iSCSI (SPC-4 §7.6.1).
    pub protocol: Option<u8>,
    /// SCSI name of the target device; for iSCSI, the IQN. May be empty.
    pub device: String,
    /// SCSI name of the target port; for iSCSI `IQN,t,0x0001`. May be empty.
    pub name: String,
    /// Relative target port identifier; 0 for none.
    pub relative: u16,
}
