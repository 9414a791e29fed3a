//! HTTPS where a key is required: X01, X02 and X54 over it, and curl as the screen prints it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::alone::{ELSEWHERE, MACHINE, is_alone};
use crate::scene::{Folder, Running, SIZE};

const SOON: Duration = Duration::from_secs(5);

/// A program with HTTPS at an address that requires a key.
struct Server {
    running: Running,
    /// The events until it was ready, and that of the code.
    events: Vec<Value>,
    address: SocketAddr,
    code: String,
}

fn serve(folder: &Folder, driver: &str) -> Server {
    let (image, keys) = (folder.image("disk.img", 7), folder.keys());
    let listen = format!("https:{ELSEWHERE}:0");
    let line = ["--no-announce", "--pair", "--protocol", "https", "--io", driver];
    let running =
        Running::serve(&[&line[..], &["--listen", &listen, "--keys", &keys, &image]].concat());
    let mut events = running.until("ready");
    let reading = running.next("reading");
    let listening = events.iter().find(|event| event["event"] == "listening").unwrap();
    let port = u16::try_from(listening["port"].as_u64().unwrap()).unwrap();
    let address = SocketAddr::new(ELSEWHERE.parse().unwrap(), port);
    let code = reading["reading_code"].as_str().unwrap().to_owned();
    events.push(reading);
    Server { running, events, address, code }
}

impl Server {
    /// Returns the curl command that the event of the disk has, with more arguments.
    fn curl(&self, code: Option<&str>, more: &[&str]) -> Command {
        let lent = self.events.iter().find(|event| event["event"] == "lent").unwrap();
        let line = lent["https"][1].as_str().unwrap();
        let mut words = line.split(' ');
        let mut curl = programs::command(words.next().unwrap());
        for word in words {
            match code {
                // Typed when curl asks for it.
                Some(code) if word == "disk" => curl.arg(format!("disk:{code}")),
                _ => curl.arg(word),
            };
        }
        curl.args(["-sS", "-m", "30"]).args(more);
        curl
    }

    /// Returns the status of a request with curl.
    fn status(&self, path: &str, more: &[&str]) -> String {
        let url = format!("https://{}{path}", self.address);
        let mut curl = programs::command("curl");
        curl.args(["-k", "-sS", "-m", "30", "-o", "/dev/null", "-w", "%{http_code}"]);
        let output = curl.args(more).arg(url).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn curl_reads_a_disk_with_the_code_as_printed() {
    if !is_alone("web::curl_reads_a_disk_with_the_code_as_printed")
        || programs::lacks("curl reads a disk by HTTPS", &["curl"])
    {
        return;
    }
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let server = serve(&folder, driver);
        let here = folder.path("");
        let done = server.curl(Some(&server.code), &[]).current_dir(&here).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(std::fs::read(folder.path("disk-copy.raw")).unwrap(), vec![7; SIZE]);
        let attached = server.running.next("attached");
        assert_eq!(attached["protocol"], "https");
        assert!(attached["tls"].as_str().unwrap().starts_with("TLS_"), "{attached}");
        // The public key of another machine: nothing is sent to it.
        let other = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let pinned = server.curl(Some(&server.code), &["--pinnedpubkey", other]).output().unwrap();
        assert_eq!(pinned.status.code(), Some(90), "CURLE_SSL_PINNEDPUBKEYNOTMATCH");
    }
}

/// X01: who has not shown the code learns nothing, X02: nothing is answered in the clear.
#[test]
fn x01_x02_https_shows_nothing_without_the_code() {
    if !is_alone("web::x01_x02_https_shows_nothing_without_the_code")
        || programs::lacks("nothing is shown without the code", &["curl"])
    {
        return;
    }
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let server = serve(&folder, driver);
        for path in ["/", "/disk.raw", "/disks.json"] {
            assert_eq!(server.status(path, &[]), "401", "{path}");
            assert_eq!(server.status(path, &["-u", "disk:wrong"]), "401", "{path}");
            assert_eq!(server.status(path, &["-H", "Accept: text/html"]), "403", "{path}");
        }
        let url = format!("https://{}/", server.address);
        let mut all = programs::command("curl");
        all.args(["-k", "-v", "-sS", "-H", "Accept: text/html", &url]);
        let output = all.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(text.contains("<form"), "{text}");
        for secret in [MACHINE, "disk.img", &server.code] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
        let mut clear = TcpStream::connect(server.address).unwrap();
        clear.set_read_timeout(Some(SOON)).unwrap();
        clear.write_all(b"GET / HTTP/1.1\r\nHost: 10.77.0.1\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let _ = clear.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
}

/// X64: by the program; a new code after SIGUSR1 forgets wrong ones.
#[test]
fn x64_new_code_opens_a_locked_address() {
    if !is_alone("web::x64_new_code_opens_a_locked_address")
        || programs::lacks("a new code opens a locked address", &["curl"])
    {
        return;
    }
    let folder = Folder::new();
    let server = serve(&folder, "uring");
    let right = format!("disk:{}", server.code);
    for _ in 0..10 {
        assert_eq!(server.status("/", &["-u", "disk:1111-1111-1111"]), "401");
    }
    assert_eq!(server.running.next("refused")["reason"], "a wrong code");
    assert_eq!(server.status("/", &["-u", &right]), "429");
    let process = server.running.process();
    let number = process.file_name().unwrap().to_str().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(number).unwrap(), Signal::USR1).unwrap();
    let again = server.running.next("reading");
    let code = again["reading_code"].as_str().unwrap();
    assert_ne!(code, server.code);
    assert_eq!(server.status("/", &["-u", &right]), "401", "the code before is invalid");
    assert_eq!(server.status("/", &["-u", &format!("disk:{code}")]), "200");
    let link = again["link"].as_str().unwrap();
    assert_eq!(link, format!("https://{}/?code={}", server.address, code.replace('-', "")));
    // A browser that follows the link, with its cookies.
    let jar = folder.path("cookies");
    let path = link.split_once(&server.address.to_string()).unwrap().1;
    let browser = ["-H", "Accept: text/html", "-c", &jar, "-b", &jar, "-L"];
    assert_eq!(server.status(path, &browser), "200");
    assert_eq!(server.status("/disks.json", &["-b", &jar]), "200");
    assert_eq!(server.status("/disks.json", &[]), "401");
}

/// X54: peers that begin a handshake and do not go on keep nobody out.
#[test]
fn x54_stalled_handshakes_keep_nobody_out() {
    if !is_alone("web::x54_stalled_handshakes_keep_nobody_out")
        || programs::lacks("stalled handshakes keep nobody out", &["curl"])
    {
        return;
    }
    let folder = Folder::new();
    let server = serve(&folder, "uring");
    let right = format!("disk:{}", server.code);
    // A record of a ClientHello, byte by byte, and one that never comes.
    let hello = [0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3];
    let mut slow: Vec<TcpStream> =
        (0..200).filter_map(|_| TcpStream::connect(server.address).ok()).collect();
    let begun = Instant::now();
    for byte in hello {
        slow.iter_mut().for_each(|stream| drop(stream.write_all(&[byte])));
        thread::sleep(Duration::from_millis(20));
    }
    let asked = Instant::now();
    // curl tries again while handshakes from this address are over their limit.
    let status = server.status("/", &["-u", &right, "--retry", "10", "--retry-all-errors"]);
    assert_eq!(status, "200");
    assert!(asked.elapsed() < 3 * SOON, "{:?}", asked.elapsed());
    thread::sleep(Duration::from_secs(11).saturating_sub(begun.elapsed()));
    for stream in &mut slow {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let ended = stream.read(&mut [0; 64]);
        assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
}

/// The certificate and its key stay over starts, the code does not.
#[test]
fn certificate_stays_over_starts() {
    if !is_alone("web::certificate_stays_over_starts") {
        return;
    }
    let folder = Folder::new();
    let of = |server: &Server| {
        let listening = server.events.iter().find(|event| event["event"] == "listening").unwrap();
        ["certificate", "public_key"].map(|name| listening[name].as_str().unwrap().to_owned())
    };
    let (first, code) = {
        let server = serve(&folder, "uring");
        (of(&server), server.code.clone())
    };
    let second = serve(&folder, "uring");
    assert_eq!(of(&second), first);
    assert_ne!(second.code, code);
}
