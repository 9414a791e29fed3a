//! How the disks are read in a browser, with a code: as a part of the overview, on a page of its own with
//! the QR code, and as plain text.

use protocol::https;

use crate::page::{Page, Role};
use crate::width::columns;
use crate::{Model, ReadingAccess, State, Style, code};

/// Bytes of a fingerprint in one line.
const BYTES_IN_LINE: usize = 16;

/// Returns the addresses for browsers that require the code, as this machine sees them.
fn pages(model: &Model) -> impl Iterator<Item = String> {
    model.endpoints.iter().filter(|at| at.keyed).filter_map(https::page)
}

/// Returns the lines of the overview: one, if it fits, with the address that is reached at `host`.
pub(crate) fn overview(model: &Model, page_there: Option<String>, style: Style) -> Vec<String> {
    let mut page = Page::new(style);
    let (Some(access), Some(url)) = (&model.reading, page_there) else { return page.lines };
    match &access.code {
        Some(code) => {
            let before = format!("In a browser: {url}");
            let with = format!("  with the code {code}");
            let short = format!("  code {code}");
            let is_short = columns(&before) + columns(&with) > style.width;
            let code = if is_short { short } else { with };
            page.push(format!("{before}{}", page.colorize(Role::Command, &code)));
        }
        None => page.sentence(&format!("In a browser: {url}. {}", hidden(access))),
    }
    page.lines
}

/// Renders the page: the selected address, code, fingerprint, and the QR code if there is room.
pub(crate) fn page(
    access: &ReadingAccess,
    (model, state): (&Model, &State),
    style: Style,
    room: usize,
) -> Vec<String> {
    let mut page = Page::new(style);
    let all: Vec<String> = pages(model).collect();
    let at = state.address % all.len().max(1);
    let url = all.get(at);
    let code = access.code.as_deref();
    match (url, code) {
        (Some(url), Some(code)) => {
            let which = match all.len() {
                1 => String::new(),
                n => format!("  (address {} of {n}: Tab)", at + 1),
            };
            page.push(format!("{url}  {}{which}", page.colorize(Role::Command, code)));
        }
        (Some(url), None) => page.sentence(&format!("{url}  {}", hidden(access))),
        (None, _) => without_code(model, &mut page),
    }
    fingerprint(access, &mut page);
    let link = url.zip(code).map(|(url, code)| https::link(url, &code.replace('-', "")));
    let qr = link.map(|link| code::qr(&link, style.utf8)).unwrap_or_default();
    let wide = qr.iter().map(|line| columns(line)).max().unwrap_or(0);
    if wide <= style.width && page.lines.len() + qr.len() <= room {
        page.lines.extend(qr);
    }
    page.lines
}

/// Adds the addresses without a code, if no address requires one.
fn without_code(model: &Model, page: &mut Page) {
    let open: Vec<String> = model.endpoints.iter().filter_map(https::page).collect();
    match open.is_empty() {
        true => page.sentence("There is no address for browsers yet."),
        false => page.sentence("No code is required here:"),
    }
    open.iter().for_each(|url| page.command(url));
}

/// Adds the fingerprint, by which a person knows the certificate.
fn fingerprint(access: &ReadingAccess, page: &mut Page) {
    let before = "SHA-256 of the certificate: ";
    let bytes: Vec<&str> = access.fingerprint.split(':').collect();
    for (n, line) in bytes.chunks(BYTES_IN_LINE).enumerate() {
        let before = if n == 0 { before.to_owned() } else { " ".repeat(before.len()) };
        page.push(format!("{before}{}", line.join(":")));
    }
}

/// Adds all addresses, the code and the fingerprint.
pub(crate) fn text(model: &Model, page: &mut Page) {
    let Some(access) = &model.reading else { return };
    let pages: Vec<String> = pages(model).collect();
    if pages.is_empty() {
        return;
    }
    page.sentence("To read the disks there in a browser:");
    pages.iter().for_each(|url| page.command(url));
    match &access.code {
        Some(code) => {
            let code = page.colorize(Role::Command, code);
            page.push(format!("with this code:  {code}"));
        }
        None => page.sentence(hidden(access)),
    }
    fingerprint(access, page);
}

/// Explains why no code is shown.
fn hidden(access: &ReadingAccess) -> &'static str {
    match access.is_on_screen {
        true => "The code is on the screen only.",
        false => {
            "No code is shown, because the output is not a terminal: run it on one, or add --pair."
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{View, example, screen};

    fn styles() -> [Style; 2] {
        [true, false].map(|utf8| Style { width: 80, color: false, utf8 })
    }

    #[test]
    fn page_with_the_qr_code_fits_a_console() {
        let model = example::web();
        let lines = screen(&model, &State::with_view(View::Reading), styles()[0], 25);
        let text = lines.join("\n");
        assert!(lines.len() <= 25 && lines.iter().all(|line| columns(line) <= 80), "{text}");
        for wanted in ["https://169.254.7.9:8443/  0123-4567-89AB", "00:11", "█", "w back"] {
            assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
        }
        let ascii = screen(&model, &State::with_view(View::Reading), styles()[1], 25).join("\n");
        assert!(ascii.is_ascii() && ascii.contains("0123-4567-89AB"), "{ascii}");
    }

    #[test]
    fn page_has_the_selected_address() {
        let mut model = example::web();
        let mut other = model.endpoints.last().unwrap().clone();
        other.addr = example::nvme("192.168.100.155", None).addr;
        if let protocol::endpoint::EndpointAddr::Net(at) = &mut other.addr {
            at.port = 8443;
        }
        model.endpoints.push(other);
        let mut state = State::with_view(View::Reading);
        let of = |state: &State| screen(&model, state, styles()[0], 25).join("\n");
        assert!(
            of(&state).contains("https://169.254.7.9:8443/  0123-4567-89AB  (address 1 of 2: Tab)")
        );
        state.address = 1;
        assert!(of(&state).contains("https://192.168.100.155:8443/"), "{}", of(&state));
        assert!(of(&state).contains("█"), "the QR code of the longest IPv4 address fits");
    }

    #[test]
    fn overview_has_the_address_and_the_code() {
        let mut model = example::web();
        let of = |model: &Model| screen(model, &State::default(), styles()[0], 25).join("\n");
        let wanted = "In a browser: https://169.254.7.9:8443/  with the code 0123-4567-89AB";
        assert!(of(&model).contains(wanted), "{}", of(&model));
        assert!(of(&model).contains("w in a browser"), "{}", of(&model));
        model.reading.as_mut().unwrap().code = None;
        assert!(of(&model).contains("add --pair"), "{}", of(&model));
        model.reading = None;
        assert!(!of(&model).contains("browser"), "{}", of(&model));
    }

    #[test]
    fn page_without_keys_says_that_no_code_is_required() {
        let mut model = example::web();
        let of = |model: &Model| {
            screen(model, &State::with_view(View::Reading), styles()[0], 25).join("\n")
        };
        model.endpoints.iter_mut().for_each(|at| at.keyed = false);
        let open = of(&model);
        for wanted in ["No code is required here:", "https://169.254.7.9:8443/", "00:11"] {
            assert!(open.contains(wanted), "{wanted} is not in:\n{open}");
        }
        assert!(!open.contains("--pair") && !open.contains("0123-4567"), "{open}");
        model.endpoints.clear();
        let none = of(&model);
        assert!(none.contains("no address for browsers yet") && !none.contains("--pair"), "{none}");
        let mut hidden = example::web();
        hidden.reading.as_mut().unwrap().code = None;
        let hidden = of(&hidden);
        assert!(hidden.contains("https://169.254.7.9:8443/") && hidden.contains("--pair"));
    }

    #[test]
    fn code_is_not_printed_for_debugging() {
        assert!(!format!("{:?}", example::web()).contains("0123-4567"));
    }
}
