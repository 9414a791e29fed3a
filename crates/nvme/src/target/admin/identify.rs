//! Identify (NVMe Base 2.0 §5.17, NVM 1.0 §4.1.5).

use export::{Access, Export};
use zerocopy::{FromZeros, IntoBytes};

use super::AdminResult;
use super::configuration::VERSION;
use super::event::MAX_EVENT_REQUESTS;
use super::feature::{DISCOVERY_EVENTS, IO_EVENTS, is_cached};
use crate::status::Status;
use crate::target::compare_and_write::MAX_FUSED_BYTES;
use crate::target::context::Context;
use crate::target::controller::{Controller, ControllerType, ERROR_ENTRIES, MAX_ABORTS};
use crate::target::job::{COPY_RANGES, MCL, MSSRL};
use crate::target::queue::Queue;
use crate::target::{MAX_CAPSULE_DATA, MDTS, NSID, NSID_ALL, QUEUE_ENTRIES};
use crate::wire::identify::{
    CSI_NVM, CommandSets, ControllerList, FUSES_COMPARE_AND_WRITE, IdentifyController,
    IdentifyControllerNvm, IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNamespaceNvm,
    NMIC_SHARED, NSATTR_WRITE_PROTECTED, NamespaceIds, NamespaceList, OFCS_DISCONNECT, cmic, cns,
    cntrltype, ctratt, dlfeat, independent, lpa, nsfeat, oncs, sgls, vwc,
};
use crate::wire::log::ana;
use crate::wire::reservation::rescap;
use crate::wire::text::{emit_ascii, emit_nqn};

/// Keep Alive Support: granularity in units of 100 ms.
const KAS: u16 = 10;

/// ANA transition time in seconds: no state is a transition.
const ANATT: u8 = 10;

/// The only ANA group.
const ANA_GROUP: u32 = 1;

/// Returns the data structure of Identify for the CNS value `page`.
pub(super) fn page(
    cx: &Context,
    queue: &Queue,
    page: u8,
    cntid: u16,
    nsid: u32,
    csi: u8,
) -> Result<AdminResult, Status> {
    let controller = queue.controller()?;
    if page == cns::CONTROLLER {
        let data = identify_controller(queue, controller).as_bytes().to_vec();
        return Ok(AdminResult::Page(data));
    }
    if controller.kind() == ControllerType::Discovery {
        return Err(Status::INVALID_FIELD.dnr());
    }
    check_command_set(page, csi)?;
    let data = match page {
        cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => identify_namespace(queue, nsid)?,
        cns::ACTIVE_NAMESPACES | cns::ACTIVE_NAMESPACES_SPECIFIC | cns::ALLOCATED_NAMESPACES => {
            namespaces(queue, nsid)?
        }
        cns::NAMESPACE_DESCRIPTORS => namespace_ids(namespace(queue, nsid)?).emit().to_vec(),
        cns::NAMESPACE_SPECIFIC => {
            namespace(queue, nsid)?;
            IdentifyNamespaceNvm::new_zeroed().as_bytes().to_vec()
        }
        cns::CONTROLLER_SPECIFIC => command_set_limits().as_bytes().to_vec(),
        cns::NAMESPACE_INDEPENDENT => identify_independent(queue, nsid)?.as_bytes().to_vec(),
        cns::ATTACHED_CONTROLLERS => {
            namespace(queue, nsid)?;
            controllers(cx, controller, cntid)
        }
        cns::CONTROLLERS => controllers(cx, controller, cntid),
        // No granularity is preferred: an empty list.
        cns::NAMESPACE_GRANULARITY => vec![0; 4096],
        cns::COMMAND_SETS => CommandSets::nvm().as_bytes().to_vec(),
        _ => return Err(Status::INVALID_FIELD.dnr()),
    };
    Ok(AdminResult::Page(data))
}

/// Returns the export of an NSID.
fn namespace(queue: &Queue, nsid: u32) -> Result<&Export, Status> {
    let grant = queue.grant().filter(|_| nsid == NSID);
    grant.map(|grant| &**grant.export()).ok_or(Status::INVALID_NAMESPACE.dnr())
}

/// Returns the list of active namespaces above `nsid`.
fn namespaces(queue: &Queue, nsid: u32) -> Result<Vec<u8>, Status> {
    if nsid >= NSID_ALL - 1 {
        return Err(Status::INVALID_NAMESPACE.dnr());
    }
    let there = namespace(queue, NSID).ok().map(|_| NSID).filter(|&id| id > nsid);
    Ok(NamespaceList::emit(there).as_bytes().to_vec())
}

fn controllers(cx: &Context, controller: &Controller, from: u16) -> Vec<u8> {
    let ids = cx.target().ids(controller.subsystem());
    ControllerList::emit(ids.into_iter().filter(|&id| id >= from)).as_bytes().to_vec()
}

/// Returns CNS 00h; zeros for an inactive namespace. FFFFFFFFh is valid only with namespace
/// management (NVM 1.0 §4.1.5.1), which is not supported.
fn identify_namespace(queue: &Queue, nsid: u32) -> Result<Vec<u8>, Status> {
    match nsid {
        NSID => match namespace(queue, NSID) {
            Ok(export) => Ok(namespace_data(export, is_read_only(queue)).as_bytes().to_vec()),
            Err(_) => Ok(vec![0; 4096]),
        },
        _ => Err(Status::INVALID_NAMESPACE.dnr()),
    }
}

fn identify_independent(queue: &Queue, nsid: u32) -> Result<IdentifyNamespaceIndependent, Status> {
    let export = namespace(queue, nsid)?;
    let mut data = IdentifyNamespaceIndependent::new_zeroed();
    data.nsfeat = if export.rotational { independent::NSFEAT_ROTATIONAL } else { 0 };
    data.nmic = sharing(export);
    data.rescap = reservation_capabilities(export);
    data.anagrpid.set(ANA_GROUP);
    data.nsattr = if is_read_only(queue) { NSATTR_WRITE_PROTECTED } else { 0 };
    data.nstat = independent::NSTAT_READY;
    Ok(data)
}

fn is_read_only(queue: &Queue) -> bool {
    queue.grant().is_none_or(|grant| grant.access() == Access::ReadOnly)
}

/// Returns CNS 01h. Linux hosts require KAS, MAXCMD, IOCCSZ and IORCSZ to be nonzero, and
/// ICDOFF zero.
fn identify_controller(queue: &Queue, controller: &Controller) -> IdentifyController {
    let mut data = common_controller(controller);
    match controller.kind() {
        ControllerType::Io => describe_io(queue, &mut data),
        ControllerType::Discovery => describe_discovery(&mut data),
    }
    if let Ok(nqn) = emit_nqn(controller.subsystem()) {
        data.subnqn = nqn;
    }
    data
}

fn describe_io(queue: &Queue, data: &mut IdentifyController) {
    if let Ok(export) = namespace(queue, NSID) {
        data.sn = emit_ascii(&export.identity.serial);
        data.mn = emit_ascii(&export.identity.model);
        data.fr = emit_ascii(&export.identity.firmware);
        data.oncs.set(optional_commands(export));
        data.set_short_name(&export.short);
        if let Some(key) = export.home.as_ref().and_then(|home| home.signing_key.as_ref()) {
            data.set_signing_key(key);
        }
    }
    data.cntrltype = cntrltype::IO;
    data.cmic = cmic::MULTIPLE_PORTS | cmic::MULTIPLE_CONTROLLERS | cmic::ANA_REPORTING;
    data.oaes.set(IO_EVENTS);
    data.anatt = ANATT;
    data.anacap = ana::REPORTS_OPTIMIZED | ana::REPORTS_INACCESSIBLE | ana::FIXED_GROUP;
    data.anagrpmax.set(ANA_GROUP);
    data.nanagrpid.set(1);
    data.lpa = lpa::COMMAND_EFFECTS | lpa::EXTENDED_DATA | lpa::SUPPORTED_LOG_PAGES;
    data.frmw = 0b11; // one firmware slot, read-only
    (data.sqes, data.cqes) = (0x66, 0x44);
    data.nn.set(NSID);
    data.mnan.set(NSID);
    data.fuses.set(FUSES_COMPARE_AND_WRITE);
    let present = if is_cached(queue) { vwc::PRESENT } else { 0 };
    data.vwc = present | vwc::FLUSH_ALL;
    data.nwpc = 1; // No Write Protect and Write Protect states
    data.acwu.set(acwu(queue));
    data.ocfs.set(0b11); // copy descriptor formats 0 and 1
    data.ioccsz.set((64 + MAX_CAPSULE_DATA) / 16);
    data.iorcsz.set(1);
    data.ofcs.set(OFCS_DISCONNECT);
}

/// Returns ACWU, 0's based, in blocks.
fn acwu(queue: &Queue) -> u16 {
    u16::try_from((MAX_FUSED_BYTES >> queue.shift()).saturating_sub(1)).unwrap_or(u16::MAX)
}

/// Returns the fields that both controller types share.
fn common_controller(controller: &Controller) -> IdentifyController {
    let mut data = IdentifyController::new_zeroed();
    data.sn = emit_ascii("");
    data.mn = emit_ascii("storagetm");
    data.fr = emit_ascii(env!("CARGO_PKG_VERSION"));
    data.mdts = MDTS;
    data.cntlid.set(controller.id());
    data.ver.set(VERSION);
    data.ctratt.set(ctratt::HOST_ID_128 | ctratt::TRAFFIC_KEEP_ALIVE);
    data.acl = zeros_based(MAX_ABORTS);
    data.aerl = zeros_based(MAX_EVENT_REQUESTS);
    data.elpe = zeros_based(ERROR_ENTRIES);
    data.kas.set(KAS);
    data.maxcmd.set(QUEUE_ENTRIES);
    data.sgls.set(sgls::SUPPORTED | sgls::OFFSET | sgls::TRANSPORT);
    data.msdbd = 1;
    data
}

fn describe_discovery(data: &mut IdentifyController) {
    data.cntrltype = cntrltype::DISCOVERY;
    data.oaes.set(DISCOVERY_EVENTS);
    data.lpa = lpa::EXTENDED_DATA | lpa::SUPPORTED_LOG_PAGES;
}

fn zeros_based(count: usize) -> u8 {
    u8::try_from(count.saturating_sub(1)).unwrap_or(u8::MAX)
}

fn optional_commands(export: &Export) -> u16 {
    let dataset = if export.discard { oncs::DATASET_MANAGEMENT } else { 0 };
    let reservations = if export.supports_reservations() { oncs::RESERVATIONS } else { 0 };
    let always = oncs::COMPARE
        | oncs::WRITE_ZEROES
        | oncs::SAVE_AND_SELECT
        | oncs::TIMESTAMP
        | oncs::VERIFY
        | oncs::COPY;
    always | dataset | reservations
}

/// Checks CSI, for the CNS values that use it: it must be the NVM command set.
fn check_command_set(page: u8, csi: u8) -> Result<(), Status> {
    let uses_csi = matches!(
        page,
        cns::NAMESPACE_SPECIFIC | cns::CONTROLLER_SPECIFIC | cns::ACTIVE_NAMESPACES_SPECIFIC
    );
    if uses_csi && csi != CSI_NVM { Err(Status::INVALID_FIELD.dnr()) } else { Ok(()) }
}

/// Returns CNS 06h for the NVM command set: no limits for Verify and Write Zeroes.
fn command_set_limits() -> IdentifyControllerNvm {
    IdentifyControllerNvm::new_zeroed()
}

fn namespace_ids(export: &Export) -> NamespaceIds {
    let identity = &export.identity;
    NamespaceIds {
        eui64: identity.eui64,
        nguid: Some(nguid(export)),
        uuid: Some(identity.uuid),
        csi: Some(CSI_NVM),
    }
}

/// Returns the NGUID of the disk, or its UUID. Never zero: ESXi and Windows require one.
fn nguid(export: &Export) -> [u8; 16] {
    export.identity.nguid.unwrap_or(export.identity.uuid)
}

/// Returns CNS 00h of an export.
fn namespace_data(export: &Export, read_only: bool) -> IdentifyNamespace {
    let mut data = IdentifyNamespace::new_zeroed();
    data.nmic = sharing(export);
    data.rescap = reservation_capabilities(export);
    data.anagrpid.set(ANA_GROUP);
    let blocks = export.blocks();
    data.nsze.set(blocks);
    data.ncap.set(blocks);
    data.nuse.set(blocks);
    data.nvmcap.set(u128::from(blocks) << export.geometry.shift());
    data.nguid = nguid(export);
    data.eui64 = export.identity.eui64.unwrap_or_default();
    data.nsattr = if read_only { NSATTR_WRITE_PROTECTED } else { 0 };
    if export.discard_zeroes {
        data.dlfeat = dlfeat::READS_ZEROES | dlfeat::WRITE_ZEROES_DEALLOCATE;
    }
    if let Some(format) = data.lbaf.first_mut() {
        format.lbads = export.geometry.shift();
    }
    set_preferred_granularity(&mut data, export);
    data.mssrl.set(MSSRL);
    data.mcl.set(MCL);
    data.msrc = zeros_based(COPY_RANGES.into());
    data
}

/// Returns NMIC. Disks of which hosts see different contents are not shared.
fn sharing(export: &Export) -> u8 {
    if export.is_private() { 0 } else { NMIC_SHARED }
}

/// Returns RESCAP.
fn reservation_capabilities(export: &Export) -> u8 {
    if !export.supports_reservations() {
        return 0;
    }
    let persistence = if export.stores_reservations() { rescap::PERSISTENCE } else { 0 };
    rescap::ALL_TYPES | rescap::IGNORE_KEY | persistence
}

/// Sets the preferred granularity to the physical block size. NOWS is a multiple of NPWG (NVM 1.0
/// §4.1.5.1).
fn set_preferred_granularity(data: &mut IdentifyNamespace, export: &Export) {
    let granularity =
        u16::try_from(export.geometry.physical / export.geometry.block() - 1).unwrap_or(0);
    data.nsfeat = nsfeat::OPTIMAL_PERFORMANCE;
    let IdentifyNamespace { npwg, npwa, npdg, npda, nows, .. } = data;
    [npwg, npwa, npdg, npda, nows].into_iter().for_each(|field| field.set(granularity));
}
