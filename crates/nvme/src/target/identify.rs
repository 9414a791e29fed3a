//! Identify: what a controller and its one namespace are (NVMe Base 2.0 §5.17, NVM 1.0 §4.1.5).

use export::{Access, Export};
use zerocopy::{FromZeros, IntoBytes};

use super::admin::{ABORTS, EVENT_REQUESTS};
use super::controller::{Controller, ERROR_ENTRIES, Kind};
use super::fabrics::VERSION;
use super::feature::{DISCOVERY_EVENTS, IO_EVENTS};
use super::io::{ALL, NSID};
use super::queue::Queue;
use super::ranges::{COPY_RANGES, MCL, MSSRL};
use super::{CAPSULE_DATA, MDTS, QUEUE_ENTRIES, fused};
use crate::status::Status;
use crate::wire::identify::{
    CSI_NVM, CommandSets, ControllerList, FUSES_COMPARE_AND_WRITE, IdentifyController,
    IdentifyControllerNvm, IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNamespaceNvm,
    NMIC_SHARED, NSATTR_WRITE_PROTECTED, NamespaceIds, NamespaceList, OFCS_DISCONNECT, cmic, cns,
    cntrltype, ctratt, dlfeat, independent, lpa, nsfeat, oncs, sgls, vwc,
};
use crate::wire::text::{emit_ascii, emit_nqn};

/// Keep Alive Support: granularity in units of 100 ms.
const KAS: u16 = 10;

impl Queue {
    /// The 4096 bytes of an Identify page.
    pub(super) fn identify(
        &self,
        page: u8,
        cntid: u16,
        nsid: u32,
        csi: u8,
    ) -> Result<Vec<u8>, Status> {
        let link = self.link.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        let controller = &link.controller;
        if page == cns::CONTROLLER {
            return Ok(self.identify_controller(controller).as_bytes().to_vec());
        }
        if controller.kind == Kind::Discovery {
            return Err(Status::INVALID_FIELD.dnr());
        }
        check_command_set(page, csi)?;
        Ok(match page {
            cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => self.identify_namespace(nsid)?,
            cns::ACTIVE_NAMESPACES
            | cns::ACTIVE_NAMESPACES_SPECIFIC
            | cns::ALLOCATED_NAMESPACES => self.namespaces(nsid)?,
            cns::NAMESPACE_DESCRIPTORS => namespace_ids(self.namespace(nsid)?).emit().to_vec(),
            cns::NAMESPACE_SPECIFIC => {
                self.namespace(nsid)?;
                IdentifyNamespaceNvm::new_zeroed().as_bytes().to_vec()
            }
            cns::CONTROLLER_SPECIFIC => command_set_limits().as_bytes().to_vec(),
            cns::NAMESPACE_INDEPENDENT => self.identify_independent(nsid)?.as_bytes().to_vec(),
            cns::ATTACHED_CONTROLLERS => {
                self.namespace(nsid)?;
                self.controllers(controller, cntid)
            }
            cns::CONTROLLERS => self.controllers(controller, cntid),
            // No granularity is asked for: a list of none.
            cns::NAMESPACE_GRANULARITY => vec![0; 4096],
            cns::COMMAND_SETS => CommandSets::nvm().as_bytes().to_vec(),
            _ => return Err(Status::INVALID_FIELD.dnr()),
        })
    }

    /// The disk that a namespace identifier names.
    fn namespace(&self, nsid: u32) -> Result<&Export, Status> {
        let grant =
            self.link.as_ref().and_then(|link| link.grant.as_ref()).filter(|_| nsid == NSID);
        grant.map(|grant| &**grant.export()).ok_or(Status::INVALID_NAMESPACE.dnr())
    }

    /// Namespaces above `nsid`.
    fn namespaces(&self, nsid: u32) -> Result<Vec<u8>, Status> {
        if nsid >= ALL - 1 {
            return Err(Status::INVALID_NAMESPACE.dnr());
        }
        let there = self.namespace(NSID).ok().map(|_| NSID).filter(|&id| id > nsid);
        Ok(NamespaceList::emit(there).as_bytes().to_vec())
    }

    fn controllers(&self, controller: &Controller, from: u16) -> Vec<u8> {
        let ids = self.target.ids(&controller.subsystem);
        ControllerList::emit(ids.into_iter().filter(|&id| id >= from)).as_bytes().to_vec()
    }

    /// CNS 00h. An identifier that is valid but names no namespace gets zeros. FFFFFFFFh is for controllers with namespace
    /// management (NVM 1.0 §4.1.5.1), which this is not.
    fn identify_namespace(&self, nsid: u32) -> Result<Vec<u8>, Status> {
        match nsid {
            NSID => match self.namespace(NSID) {
                Ok(export) => Ok(describe(export, self.is_read_only()).as_bytes().to_vec()),
                Err(_) => Ok(vec![0; 4096]),
            },
            _ => Err(Status::INVALID_NAMESPACE.dnr()),
        }
    }

    fn identify_independent(&self, nsid: u32) -> Result<IdentifyNamespaceIndependent, Status> {
        let export = self.namespace(nsid)?;
        let mut figure = IdentifyNamespaceIndependent::new_zeroed();
        figure.nsfeat = if export.rotational { independent::NSFEAT_ROTATIONAL } else { 0 };
        figure.nmic = NMIC_SHARED;
        figure.nsattr = if self.is_read_only() { NSATTR_WRITE_PROTECTED } else { 0 };
        figure.nstat = independent::NSTAT_READY;
        Ok(figure)
    }

    fn is_read_only(&self) -> bool {
        let grant = self.link.as_ref().and_then(|link| link.grant.as_ref());
        grant.is_none_or(|grant| grant.access() == Access::ReadOnly)
    }

    /// CNS 01h, in the form that Linux hosts demand: KAS, MAXCMD, IOCCSZ and IORCSZ not zero, ICDOFF zero.
    fn identify_controller(&self, controller: &Controller) -> IdentifyController {
        let mut figure = common_controller(controller);
        match controller.kind {
            Kind::Io => self.describe_io(&mut figure),
            Kind::Discovery => describe_discovery(&mut figure),
        }
        if let Ok(nqn) = emit_nqn(&controller.subsystem) {
            figure.subnqn = nqn;
        }
        figure
    }

    fn describe_io(&self, figure: &mut IdentifyController) {
        if let Ok(export) = self.namespace(NSID) {
            figure.sn = emit_ascii(&export.identity.serial);
            figure.mn = emit_ascii(&export.identity.model);
            figure.fr = emit_ascii(&export.identity.firmware);
            figure.oncs.set(commands(export));
            figure.set_short_name(&export.short);
        }
        figure.cntrltype = cntrltype::IO;
        figure.cmic = cmic::MULTIPLE_PORTS | cmic::MULTIPLE_CONTROLLERS;
        figure.oaes.set(IO_EVENTS);
        figure.lpa = lpa::COMMAND_EFFECTS | lpa::EXTENDED_DATA | lpa::SUPPORTED_LOG_PAGES;
        figure.frmw = 0b11; // one slot, which cannot be written
        (figure.sqes, figure.cqes) = (0x66, 0x44);
        figure.nn.set(NSID);
        figure.mnan.set(NSID);
        figure.fuses.set(FUSES_COMPARE_AND_WRITE);
        let present = if self.is_cached() { vwc::PRESENT } else { 0 };
        figure.vwc = present | vwc::FLUSH_ALL;
        figure.nwpc = 1; // write protect is told, by Get Features
        figure.acwu.set(self.acwu());
        figure.ocfs.set(0b11); // copy descriptor formats 0 and 1
        figure.ioccsz.set((64 + CAPSULE_DATA) / 16);
        figure.iorcsz.set(1);
        figure.ofcs.set(OFCS_DISCONNECT);
    }

    /// Blocks of a fused Compare and Write at most, zero's based.
    fn acwu(&self) -> u16 {
        u16::try_from((fused::LARGEST >> self.shift()).saturating_sub(1)).unwrap_or(u16::MAX)
    }
}

/// What both kinds of controller have.
fn common_controller(controller: &Controller) -> IdentifyController {
    let mut figure = IdentifyController::new_zeroed();
    figure.sn = emit_ascii("");
    figure.mn = emit_ascii("storagetm");
    figure.fr = emit_ascii(env!("CARGO_PKG_VERSION"));
    figure.mdts = MDTS;
    figure.cntlid.set(controller.id);
    figure.ver.set(VERSION);
    figure.ctratt.set(ctratt::HOST_ID_128 | ctratt::TRAFFIC_KEEP_ALIVE);
    figure.acl = zeros_based(ABORTS);
    figure.aerl = zeros_based(EVENT_REQUESTS);
    figure.elpe = zeros_based(ERROR_ENTRIES);
    figure.kas.set(KAS);
    figure.maxcmd.set(QUEUE_ENTRIES);
    figure.sgls.set(sgls::SUPPORTED | sgls::OFFSET | sgls::TRANSPORT);
    figure.msdbd = 1;
    figure
}

fn describe_discovery(figure: &mut IdentifyController) {
    figure.cntrltype = cntrltype::DISCOVERY;
    figure.oaes.set(DISCOVERY_EVENTS);
    figure.lpa = lpa::EXTENDED_DATA | lpa::SUPPORTED_LOG_PAGES;
}

fn zeros_based(count: usize) -> u8 {
    u8::try_from(count.saturating_sub(1)).unwrap_or(u8::MAX)
}

fn commands(export: &Export) -> u16 {
    let dataset = if export.discard { oncs::DATASET_MANAGEMENT } else { 0 };
    let always = oncs::COMPARE
        | oncs::WRITE_ZEROES
        | oncs::SAVE_AND_SELECT
        | oncs::TIMESTAMP
        | oncs::VERIFY
        | oncs::COPY;
    always | dataset
}

/// The command set of Identify's CSI must be the NVM command set where the page is of a command set.
fn check_command_set(page: u8, csi: u8) -> Result<(), Status> {
    let of_a_set = matches!(
        page,
        cns::NAMESPACE_SPECIFIC | cns::CONTROLLER_SPECIFIC | cns::ACTIVE_NAMESPACES_SPECIFIC
    );
    if of_a_set && csi != CSI_NVM { Err(Status::INVALID_FIELD.dnr()) } else { Ok(()) }
}

/// CNS 06h for the NVM command set: Verify and Write Zeroes are not bounded by MDTS.
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

/// The disk's own NGUID, else its UUID. Never zero: ESXi and Windows attach no namespace without one.
fn nguid(export: &Export) -> [u8; 16] {
    export.identity.nguid.unwrap_or(export.identity.uuid)
}

/// CNS 00h of a disk.
fn describe(export: &Export, read_only: bool) -> IdentifyNamespace {
    let mut figure = IdentifyNamespace::new_zeroed();
    figure.nmic = NMIC_SHARED;
    let blocks = export.blocks();
    figure.nsze.set(blocks);
    figure.ncap.set(blocks);
    figure.nuse.set(blocks);
    figure.nvmcap.set(u128::from(blocks) << export.geometry.shift());
    figure.nguid = nguid(export);
    figure.eui64 = export.identity.eui64.unwrap_or_default();
    figure.nsattr = if read_only { NSATTR_WRITE_PROTECTED } else { 0 };
    if export.discard_zeroes {
        figure.dlfeat = dlfeat::READS_ZEROES | dlfeat::WRITE_ZEROES_DEALLOCATE;
    }
    if let Some(format) = figure.lbaf.first_mut() {
        format.lbads = export.geometry.shift();
    }
    prefer(&mut figure, export);
    figure.mssrl.set(MSSRL);
    figure.mcl.set(MCL);
    figure.msrc = zeros_based(COPY_RANGES.into());
    figure
}

/// What the disk prefers: pieces of its physical block size. NOWS is a multiple of NPWG (NVM 1.0 §4.1.5.1).
fn prefer(figure: &mut IdentifyNamespace, export: &Export) {
    let granularity =
        u16::try_from(export.geometry.physical / export.geometry.block() - 1).unwrap_or(0);
    figure.nsfeat = nsfeat::OPTIMAL_PERFORMANCE;
    let IdentifyNamespace { npwg, npwa, npdg, npda, nows, .. } = figure;
    [npwg, npwa, npdg, npda, nows].into_iter().for_each(|field| field.set(granularity));
}
