//! Reservations that persist: they outlive the worker, and the program, and a damaged file is
//! reported and ignored.

use std::fs;

use nvme::command::ReservationRequest;
use nvme::status::Status;
use nvme::wire::reservation::cptpl;
use rustix::process::{Pid, Signal, kill_process};

use crate::host::{Attached, NvmeClient};
use crate::process::find;
use crate::scene::{DESK, Folder, LAPTOP, Running, contains};

type Host = Attached<std::net::TcpStream>;

const REGISTER: ReservationRequest =
    ReservationRequest::Register { action: 0, ignore_key: false, persistence: cptpl::SET };
const ACQUIRE: ReservationRequest =
    ReservationRequest::Acquire { action: 0, ignore_key: false, rtype: 1 };

fn serve(folder: &Folder) -> Running {
    let (image, keys) = (folder.path("disk.img"), folder.keys());
    Running::serve(&["--keys", &keys, "--listen", "127.0.0.1:0", "--writable", &image])
}

/// Attaches the disk as soon as it is exported.
fn attach(running: &(std::net::SocketAddr, Vec<String>), host: &str) -> Host {
    let client = NvmeClient::new(host, &running.1[0]);
    find(|| client.attach_plain(running.0).ok()).expect("an attached disk")
}

/// Generation, type, number of registrants and PTPL state.
fn report(host: &mut Host) -> [u8; 4] {
    let page = host.reservations().unwrap();
    [page[0], page[4], page[5], page[9]]
}

fn files(folder: &Folder) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder.path("state/reservations")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|it| it == "json")).collect()
}

#[test]
fn persistent_reservation_outlives_worker_and_program() {
    let folder = Folder::new();
    folder.image("disk.img", 4);
    let running = serve(&folder);
    let ready = running.ready();
    let mut laptop = attach(&ready, LAPTOP);
    assert_eq!(laptop.reserve(REGISTER, (0, 10)), Ok(Status::SUCCESS));
    assert_eq!(laptop.reserve(ACQUIRE, (10, 0)), Ok(Status::SUCCESS));
    assert_eq!(report(&mut laptop), [1, 1, 1, 1]);
    assert_eq!(attach(&ready, DESK).write(0), Ok(false));

    let worker = running.worker();
    let pid = worker.file_name().unwrap().to_str().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    drop(laptop);
    let mut laptop = attach(&ready, LAPTOP);
    assert_eq!(report(&mut laptop), [0, 1, 1, 1]);
    assert_eq!(attach(&ready, DESK).write(0), Ok(false));
    assert_eq!(laptop.write(0), Ok(true));

    drop(running);
    let running = serve(&folder);
    let ready = running.ready();
    assert_eq!(attach(&ready, DESK).write(0), Ok(false));
    let mut laptop = attach(&ready, LAPTOP);
    let release = ReservationRequest::Release { action: 1, ignore_key: false, rtype: 0 };
    assert_eq!(laptop.reserve(release, (10, 0)), Ok(Status::SUCCESS));
    assert_eq!(attach(&ready, DESK).write(0), Ok(true));
}

#[test]
fn reservations_that_do_not_persist_are_not_stored() {
    let folder = Folder::new();
    folder.image("disk.img", 4);
    let running = serve(&folder);
    let ready = running.ready();
    let mut laptop = attach(&ready, LAPTOP);
    assert_eq!(laptop.reserve(REGISTER, (0, 10)), Ok(Status::SUCCESS));
    assert_eq!(files(&folder).len(), 1);
    let off =
        ReservationRequest::Register { action: 2, ignore_key: false, persistence: cptpl::CLEAR };
    assert_eq!(laptop.reserve(off, (10, 11)), Ok(Status::SUCCESS));
    assert_eq!(files(&folder).len(), 0);
    drop((laptop, running));
    let running = serve(&folder);
    assert_eq!(report(&mut attach(&running.ready(), LAPTOP)), [0, 0, 0, 0]);
}

#[test]
fn disk_with_damaged_reservations_is_not_lent() {
    let folder = Folder::new();
    folder.image("disk.img", 4);
    let running = serve(&folder);
    let mut laptop = attach(&running.ready(), LAPTOP);
    assert_eq!(laptop.reserve(REGISTER, (0, 10)), Ok(Status::SUCCESS));
    drop((laptop, running));
    let [file] = &files(&folder)[..] else { panic!("one file") };
    let text = fs::read(file).unwrap();
    fs::write(file, &text[..text.len() / 2]).unwrap();
    let running = serve(&folder);
    let is_reported = || contains(&running.output(), "cannot be restored").then_some(());
    find(is_reported).expect("a message");
}

#[test]
fn reservation_that_cannot_be_stored_fails() {
    let folder = Folder::new();
    folder.image("disk.img", 4);
    let running = serve(&folder);
    let mut laptop = attach(&running.ready(), LAPTOP);
    fs::create_dir(folder.keys()).unwrap();
    fs::write(folder.path("state/reservations"), "in the way").unwrap();
    assert_eq!(laptop.reserve(REGISTER, (0, 10)), Ok(Status::INTERNAL_ERROR));
    let is_reported = || contains(&running.output(), "reservations cannot be stored").then_some(());
    find(is_reported).expect("a message");
    fs::remove_file(folder.path("state/reservations")).unwrap();
    assert_eq!(laptop.reserve(REGISTER, (0, 10)), Ok(Status::SUCCESS));
    assert_eq!(files(&folder).len(), 1);
}
