//! Listeners that require a key or a certificate, with clients that use GnuTLS and OpenSSL.

use std::fs;

use crate::foreign::{Folder, MIB, lacks, program, run, same, stderr_of_failing, stdout_of};
use crate::server::{DRIVERS, PROGRAM, Server};

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
/// All addresses: requires a key, also from this machine.
const KEYED: &str = "nbd:0.0.0.0:0";

/// A server with an authorized host `laptop`, and the PSK file of other programs.
struct Scene {
    folder: Folder,
    image: String,
}

impl Scene {
    fn new() -> Self {
        let folder = Folder::new();
        let image = folder.random_bytes("disk.img", 4 * MIB);
        let scene = Self { folder, image };
        scene.owner(&["key", "generate", "--name", "laptop"]);
        scene.owner(&[
            "host",
            "add",
            HOST,
            "--name",
            "laptop",
            "--tls-key",
            "laptop",
            "--writable",
        ]);
        let lines = scene.owner(&["key", "export", "laptop", "--nbd"]);
        fs::create_dir(scene.folder.path("psk")).unwrap();
        fs::write(scene.file(), lines).unwrap();
        scene
    }

    fn owner(&self, args: &[&str]) -> String {
        let keys = self.folder.path("keys");
        let output = run(program(PROGRAM).args(args).args(["--keys", &keys]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn file(&self) -> String {
        self.folder.path("psk/keys.psk")
    }

    /// Starts a server with write access for hosts with a key.
    fn serve(&self, io: &str, more: &[&str]) -> Server {
        let keys = self.folder.path("keys");
        let args = ["--io", io, "--listen", KEYED, "--keys", &keys, "--writable", &self.image];
        Server::start(&[&args, more].concat())
    }

    fn uri(&self, server: &Server, user: &str, file: &str) -> String {
        format!("nbds://{user}@127.0.0.1:{}/disk?tls-psk-file={file}", server.port())
    }
}

/// X02: a plaintext client is told that TLS is required, and nothing else.
#[test]
fn x02_interop_plaintext_client_learns_nothing() {
    if lacks("who comes in the clear learns nothing", &["nbdinfo", "qemu-nbd"]) {
        return;
    }
    let scene = Scene::new();
    for io in DRIVERS {
        let server = scene.serve(io, &[]);
        let uri = format!("nbd://127.0.0.1:{}/disk", server.port());
        let port = server.port().to_string();
        let info = [
            stderr_of_failing("nbdinfo", &[&uri]),
            stderr_of_failing("nbdinfo", &["--list", &uri]),
            run(program("qemu-nbd").args(["--list", "-b", "127.0.0.1", "-p", &port]))
                .stdout
                .escape_ascii()
                .to_string(),
        ];
        for message in info {
            assert!(!message.contains("4194304") && !message.contains("4M"), "{message}");
        }
        assert!(stderr_of_failing("nbdinfo", &[&uri]).to_lowercase().contains("tls"));
    }
}

#[test]
fn interop_a_key_lets_gnutls_clients_in() {
    if lacks("a key lets GnuTLS clients in", &["nbdinfo", "nbdcopy"]) {
        return;
    }
    let scene = Scene::new();
    for io in DRIVERS {
        let server = scene.serve(io, &[]);
        let uri = scene.uri(&server, "laptop", &scene.file());
        assert_eq!(stdout_of("nbdinfo", &["--size", &uri]).trim(), (4 * MIB).to_string());
        let info = stdout_of("nbdinfo", &["--json", &uri]);
        assert!(info.contains("\"TLS\": true"), "{info}");
        let copy = scene.folder.path(&format!("copy-{io}"));
        stdout_of("nbdcopy", &[&uri, &copy]);
        same(&scene.image, copy);
        let new = scene.folder.sparse(&format!("new-{io}"), 4 * MIB);
        stdout_of("nbdcopy", &["--flush", &new, &uri]);
        same(&scene.image, new);
    }
}

/// A key also works where none is required.
#[test]
fn interop_a_key_works_at_a_loopback_address() {
    if lacks("a key works at a loopback address", &["nbdinfo"]) {
        return;
    }
    let scene = Scene::new();
    let keys = scene.folder.path("keys");
    let server = Server::tcp(&["--keys", &keys, &scene.image]);
    let info = stdout_of("nbdinfo", &["--json", &scene.uri(&server, "laptop", &scene.file())]);
    assert!(info.contains("\"TLS\": true"), "{info}");
    assert_eq!(server.until("attached").pop().unwrap()["host"], HOST);
    stdout_of("nbdinfo", &["--size", &server.uri("disk")]);
    let wrong = scene.folder.path("wrong.psk");
    fs::write(&wrong, format!("laptop:{}\n", "5a".repeat(32))).unwrap();
    stderr_of_failing("nbdinfo", &["--size", &scene.uri(&server, "laptop", &wrong)]);
}

#[test]
fn interop_wrong_key_is_refused() {
    if lacks("a wrong key lets nobody in", &["nbdinfo"]) {
        return;
    }
    let scene = Scene::new();
    let server = scene.serve("auto", &[]);
    let wrong = scene.folder.path("wrong.psk");
    fs::write(&wrong, format!("laptop:{}\nother:{}\n", "5a".repeat(32), "a5".repeat(32))).unwrap();
    for user in ["laptop", "other"] {
        stderr_of_failing("nbdinfo", &["--size", &scene.uri(&server, user, &wrong)]);
    }
    stdout_of("nbdinfo", &["--size", &scene.uri(&server, "laptop", &scene.file())]);
}

#[test]
fn interop_a_key_lets_qemu_in() {
    if lacks("a key lets qemu in", &["qemu-img"]) {
        return;
    }
    let scene = Scene::new();
    let server = scene.serve("auto", &[]);
    let folder = scene.folder.path("psk");
    let object = format!("tls-creds-psk,id=t,endpoint=client,username=laptop,dir={folder}");
    let place = format!("driver=nbd,host=127.0.0.1,port={},export=disk,tls-creds=t", server.port());
    let image = ["--object", &object, "--image-opts", &place];
    let info = stdout_of("qemu-img", &[&["info", "--output=json"], &image[..]].concat());
    assert!(info.contains("\"virtual-size\": 4194304"), "{info}");
    let copy = scene.folder.path("copy");
    stdout_of("qemu-img", &[&["convert", "-O", "raw"], &image[..], &[&copy]].concat());
    same(&scene.image, copy);
}

/// Certificates made with OpenSSL: `ca`, `server` and `client`, and `stranger` of another CA.
fn certificates(folder: &Folder) -> String {
    let at = folder.path("pki");
    fs::create_dir(&at).unwrap();
    for authority in ["ca", "strange-ca"] {
        let key = format!("{at}/{authority}-key.pem");
        let certificate = format!("{at}/{authority}-cert.pem");
        let new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"];
        let subject = format!("/CN={authority}");
        stdout_of(
            "openssl",
            &[&new[..], &[&subject, "-keyout", &key, "-out", &certificate]].concat(),
        );
    }
    let names = format!("{at}/names");
    fs::write(&names, "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    let certified = [
        ("server", "ca", "localhost"),
        ("client", "ca", "laptop"),
        ("visitor", "ca", "visitor"),
        ("stranger", "strange-ca", "laptop"),
    ];
    for (name, authority, called) in certified {
        let [key, request, certificate] =
            ["key.pem", "request.pem", "cert.pem"].map(|end| format!("{at}/{name}-{end}"));
        let subject = format!("/CN={called}");
        let new = ["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject];
        stdout_of("openssl", &[&new[..], &["-keyout", &key, "-out", &request]].concat());
        let (ca, ca_key) =
            (format!("{at}/{authority}-cert.pem"), format!("{at}/{authority}-key.pem"));
        let sign = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-days", "2"];
        let rest = ["-set_serial", "1", "-out", &certificate];
        let names: &[&str] = if name == "server" { &["-extfile", &names] } else { &[] };
        stdout_of("openssl", &[&sign[..], &rest, names].concat());
    }
    at
}

#[test]
fn interop_certificates_let_gnutls_clients_in() {
    if lacks("certificates let GnuTLS clients in", &["nbdinfo", "nbdcopy", "qemu-img", "openssl"]) {
        return;
    }
    let scene = Scene::new();
    let at = certificates(&scene.folder);
    for io in DRIVERS {
        let server = scene.serve(io, &["--tls-certificates", &at]);
        let uri = format!("nbds://localhost:{}/disk?tls-certificates=", server.port());
        let (known, unknown) = (format!("{uri}{at}"), scene.folder.path("stranger"));
        assert_eq!(stdout_of("nbdinfo", &["--size", &known]).trim(), (4 * MIB).to_string());
        let copy = scene.folder.path(&format!("copy-{io}"));
        stdout_of("nbdcopy", &[&known, &copy]);
        same(&scene.image, copy);
        // A client with a certificate of another CA, and one without a certificate.
        let _ = fs::remove_dir_all(&unknown);
        fs::create_dir(&unknown).unwrap();
        fs::copy(format!("{at}/ca-cert.pem"), format!("{unknown}/ca-cert.pem")).unwrap();
        let stranger = format!("{uri}{unknown}");
        stderr_of_failing("nbdinfo", &["--size", &stranger]);
        // A certificate of this CA for an unknown host is refused as well.
        for other in ["stranger", "visitor"] {
            for end in ["key.pem", "cert.pem"] {
                fs::copy(format!("{at}/{other}-{end}"), format!("{unknown}/client-{end}")).unwrap();
            }
            stderr_of_failing("nbdinfo", &["--size", &stranger]);
        }
        stdout_of("nbdinfo", &["--size", &known]);
    }
    scene.owner(&["host", "remove", "laptop"]);
    let server = scene.serve("auto", &["--tls-certificates", &at]);
    let uri = format!("nbds://localhost:{}/disk?tls-certificates={at}", server.port());
    stderr_of_failing("nbdinfo", &["--size", &uri]);
}

#[test]
fn interop_client_rejects_another_server() {
    if lacks("a client notices that the server is another", &["nbdinfo", "openssl"]) {
        return;
    }
    let scene = Scene::new();
    let at = certificates(&scene.folder);
    for end in ["key.pem", "cert.pem"] {
        fs::copy(format!("{at}/stranger-{end}"), format!("{at}/server-{end}")).unwrap();
    }
    let server = scene.serve("auto", &["--tls-certificates", &at]);
    let uri = format!("nbds://localhost:{}/disk?tls-certificates={at}", server.port());
    stderr_of_failing("nbdinfo", &["--size", &uri]);
}
