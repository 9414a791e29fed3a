//! MODE SENSE and MODE SELECT (SPC-4 §6.9 to §6.12, §7.5).

use export::Cache;

use crate::world::{SECTOR, World, code, ten};

/// The caching page of a disk with a write cache.
const CACHING: [u8; 20] = [0x08, 18, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The control page.
const CONTROL: [u8; 12] = [0x0a, 10, 2, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
/// The informational exceptions control page.
const EXCEPTIONS: [u8; 12] = [0x1c, 10, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The block descriptor of the disk.
const DESCRIPTOR: [u8; 8] = [0, 0, 2, 0, 0, 0, 2, 0];

#[test]
fn golden_mode_parameters() {
    let mut world = World::new();
    let caching = [&[23, 0, 0x10, 0][..], &CACHING].concat();
    assert_eq!(world.run(&[0x1a, 8, 0x08, 0, 255]).data, caching);
    let control = [&[23, 0, 0x10, 8][..], &DESCRIPTOR, &CONTROL].concat();
    assert_eq!(world.run(&[0x1a, 0, 0x0a, 0, 255]).data, control);
    let all = [&CACHING[..], &CONTROL, &EXCEPTIONS].concat();
    let six = [&[47, 0, 0x10, 0][..], &all].concat();
    assert_eq!(world.run(&[0x1a, 8, 0x3f, 0, 255]).data, six);
    assert_eq!(world.run(&[0x1a, 8, 0x3f, 0xff, 255]).data, six);
    let ten = [&[0, 58, 0, 0x10, 0, 0, 0, 8][..], &DESCRIPTOR, &all].concat();
    assert_eq!(world.run(&[0x5a, 0x10, 0x3f, 0, 0, 0, 0, 1, 0]).data, ten);
    assert_eq!(world.run(&[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 4]).data, ten[..4]);
}

#[test]
fn write_protection_and_cache_are_reported() {
    assert_eq!(World::read_only().run(&[0x1a, 0, 0x3f, 0, 4]).data[2], 0x90);
    assert_eq!(World::read_only().run(&[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 8]).data[3], 0x90);
    let mut cacheless = World::of((512, 512), |export| export.cache = Cache::WriteThrough);
    assert_eq!(cacheless.run(&[0x1a, 8, 0x08, 0, 255]).data[6], 0);
}

#[test]
fn only_software_write_protection_is_changeable() {
    let mut world = World::new();
    let data = world.run(&[0x1a, 8, 0x48, 0, 255]).data;
    assert_eq!((&data[4..6], &data[6..]), (&[0x08, 18][..], &[0; 18][..]));
    let data = world.run(&[0x1a, 8, 0x4a, 0, 255]).data;
    assert_eq!(data[4..], [0x0a, 10, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    let default = world.run(&[0x1a, 8, 0x88, 0, 255]).data;
    assert_eq!(default[4..], CACHING);
    assert_eq!(code(&world.run(&[0x1a, 8, 0xc8, 0, 255])), (0x39, 0));
}

#[test]
fn unsupported_mode_pages_are_refused() {
    let mut world = World::new();
    for (page, subpage) in [(0x05, 0), (0x0a, 5), (0x3f, 1), (0x00, 0), (0x08, 0xff)] {
        assert_eq!(code(&world.run(&[0x1a, 8, page, subpage, 255])), (0x24, 0), "{page:02x}");
    }
}

#[test]
fn select_of_the_current_values_succeeds() {
    let mut world = World::new();
    let list = [&[0, 0, 0, 8][..], &DESCRIPTOR, &CACHING, &CONTROL].concat();
    let len = u8::try_from(list.len()).unwrap();
    assert!(world.run_out(&[0x15, 0x10, 0, 0, len], &list).is_good());
    let list = [&[0, 0, 0, 0, 0, 0, 0, 0][..], &CACHING].concat();
    let len = u8::try_from(list.len()).unwrap();
    assert!(world.run_out(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, len], &list).is_good());
    assert!(world.run(&[0x15, 0x10, 0, 0, 0]).is_good());
}

#[test]
fn select_of_other_values_is_refused() {
    let mut world = World::new();
    let mut select = |list: &[u8]| {
        let len = u8::try_from(list.len()).unwrap();
        code(&world.run_out(&[0x15, 0x10, 0, 0, len], list))
    };
    let mut caching = [&[0, 0, 0, 0][..], &CACHING].concat();
    caching[6] = 0;
    assert_eq!(select(&caching), (0x26, 0), "WCE");
    assert_eq!(select(&[0, 0, 0, 0, 0x05, 0]), (0x26, 0), "an unknown page");
    assert_eq!(select(&[0, 0, 0, 8, 0, 0, 2, 0, 0, 0, 4, 0]), (0x26, 0), "the block length");
    for list in [&[0, 0, 0][..], &[0, 0, 0, 8, 0], &[0, 0, 0, 0, 8], &caching[..20]] {
        assert_eq!(select(list), (0x1a, 0), "{list:02x?}");
    }
    assert_eq!(code(&world.run(&[0x15, 0x11, 0, 0, 0])), (0x24, 0), "saving");
    assert_eq!(code(&world.run(&[0x15, 0, 0, 0, 4])), (0x24, 0), "not pages");
}

#[test]
fn software_write_protection_refuses_writes() {
    let mut world = World::new();
    let other = world.add();
    let mut list = [&[0, 0, 0, 0][..], &CONTROL].concat();
    let len = u8::try_from(list.len()).unwrap();
    list[8] = 8;
    assert!(world.run_out(&[0x15, 0x10, 0, 0, len], &list).is_good());
    let data = world.run(&[0x1a, 8, 0x0a, 0, 255]).data;
    assert_eq!((data[2], &data[4..]), (0x90, &list[4..]));
    assert_eq!(world.run(&[0x1a, 8, 0x8a, 0, 255]).data[8], 0, "the default");
    for cdb in [ten(0x2a, 0, 0, 1), ten(0x2e, 0, 0, 1), ten(0x41, 0, 0, 1), vec![0x42]] {
        assert_eq!(code(&world.run(&cdb)), (0x27, 2));
    }
    assert!(world.run(&ten(0x28, 0, 0, 1)).is_good());
    assert!(world.send(other, &ten(0x2a, 0, 0, 1), &[0; SECTOR]).is_good());
    list[8] = 0;
    assert!(world.run_out(&[0x15, 0x10, 0, 0, len], &list).is_good());
    assert!(world.run_out(&ten(0x2a, 0, 0, 1), &[0; SECTOR]).is_good());
}

/// Sense data has the fixed format: D_SENSE is not set, cannot be changed, and DESC is refused.
#[test]
fn descriptor_format_of_sense_data_is_refused() {
    let mut world = World::new();
    assert_eq!(code(&world.run(&[3, 1, 0, 0, 18])), (0x24, 0));
    for control in [0, 1, 2] {
        let page = world.run(&[0x1a, 8, control << 6 | 0x0a, 0, 255]).data;
        assert_eq!((page[4], page[6] & 4), (0x0a, 0), "{control}");
    }
    let mut list = world.run(&[0x1a, 8, 0x0a, 0, 255]).data;
    (list[0], list[6]) = (0, list[6] | 4);
    let length = u8::try_from(list.len()).unwrap();
    assert_eq!(code(&world.run_out(&[0x15, 0x10, 0, 0, length], &list)), (0x26, 0));
}
