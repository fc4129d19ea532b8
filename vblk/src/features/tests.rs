//! What a driver is shown.

use super::*;

const RING: u64 = 1 << 32 | 1 << 28;

fn u32_at(config: &Config, at: u32) -> u32 {
    let bytes = config.read(at, 4).unwrap();
    u32::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn the_features_are_those_of_the_disk_and_of_the_rings() {
    let disk = Disk::null(1 << 30);
    let one = offered(&disk, 1, RING);
    assert_eq!(one & RING, RING);
    assert_eq!(one & F_MQ, 0);
    let all = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE;
    assert_eq!(one & !RING, all | F_DISCARD | F_WRITE_ZEROES);
    assert_eq!(offered(&disk, 4, RING), one | F_MQ);
    let ro = disk.locked();
    let bits = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_RO;
    assert_eq!(offered(&ro, 1, 0), bits);
}

#[test]
fn the_configuration_space_has_each_field_in_its_place() {
    let config = Config::new(&Disk::null(3 << 30), 4);
    let capacity = config.read(0, 8).unwrap();
    assert_eq!(
        u64::from_le_bytes(capacity.try_into().unwrap()),
        (3 << 30) / 512
    );
    assert_eq!(u32_at(&config, 12), 126);
    assert_eq!(u32_at(&config, 20), 512);
    // Physical blocks of 8 logical ones, which is also the smallest good I/O; no offset.
    assert_eq!(config.read(24, 8).unwrap(), [3, 0, 8, 0, 0, 0, 0, 0]);
    assert_eq!(config.read(32, 4).unwrap(), [1, 0, 4, 0]);
    let words: Vec<_> = [36, 40, 44, 48, 52].map(|at| u32_at(&config, at)).into();
    assert_eq!(words, [1 << 21, 32, 8, 1 << 18, 32]);
    assert_eq!(config.read(56, 4).unwrap(), [1, 0, 0, 0]);
    assert_eq!(config.read(60, 36).unwrap(), [0; 36]);
    let ro = Config::new(&Disk::null(1 << 20).locked(), 1);
    assert_eq!(
        ro.read(32, 28).unwrap(),
        [&[0, 0, 1, 0][..], &[0; 24]].concat()
    );
}

#[test]
fn h18_reads_of_the_configuration_space_stay_inside() {
    let config = Config::new(&Disk::null(1 << 20), 1);
    let all = config.read(0, 256).unwrap();
    assert_eq!(all.len(), 256);
    assert!(all[CONFIG_LEN..].iter().all(|b| *b == 0));
    assert_eq!(config.read(0x100, 256).unwrap(), all);
    assert_eq!(config.read(0x100 + 20, 4), config.read(20, 4));
    assert_eq!(config.read(255, 1).unwrap(), [0]);
    assert!(config.read(17, 0).unwrap().is_empty());
    for (offset, len) in [
        (0, 257),
        (1, 256),
        (255, 2),
        (0x100, 257),
        (0x200, 1),
        (u32::MAX, 1),
        (1, u32::MAX),
        (u32::MAX, u32::MAX),
    ] {
        assert_eq!(config.read(offset, len), None, "{offset} {len}");
    }
}

#[test]
fn only_the_write_cache_can_be_written() {
    let mut config = Config::new(&Disk::null(1 << 20), 1);
    let before = config.read(0, 256);
    for (offset, bytes) in [
        (32, &[2][..]),
        (32, &[]),
        (32, &[0, 0]),
        (31, &[0]),
        (0, &[0; 8]),
        (0x200 + 32, &[0]),
        (u32::MAX, &[0]),
    ] {
        assert!(!config.write(offset, bytes), "{offset} {bytes:?}");
    }
    assert_eq!(config.read(0, 256), before);
    assert!(config.wce() && config.write(32, &[0]) && !config.wce());
    assert!(config.write(0x100 + 32, &[1]) && config.wce());
    let mut ro = Config::new(&Disk::null(1 << 20).locked(), 1);
    assert!(!ro.write(32, &[1]) && !ro.wce());
}

#[test]
fn writes_are_durable_unless_the_driver_can_flush_and_wants_a_cache() {
    for (features, wce, durable) in [
        (0, true, true),
        (F_CONFIG_WCE, true, true),
        (F_CONFIG_WCE, false, true),
        (F_FLUSH, true, false),
        (F_FLUSH, false, false),
        (F_FLUSH | F_CONFIG_WCE, true, false),
        (F_FLUSH | F_CONFIG_WCE, false, true),
    ] {
        assert_eq!(write_through(features, wce), durable, "{features:#x} {wce}");
    }
}

#[test]
fn a_new_size_shows() {
    let mut config = Config::new(&Disk::null(1 << 20), 1);
    config.set_capacity(1 << 21);
    assert_eq!(u32_at(&config, 0), 4096);
}
