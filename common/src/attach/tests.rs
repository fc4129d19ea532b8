//! What is printed for each VMM, and what a monitor is asked.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::thread;

use serde_json::Value;

use super::*;

fn disk(mode: SocketMode) -> Device {
    Device {
        kind: Kind::Disk,
        name: "web".into(),
        socket: "/run/a,b'.sock".into(),
        mode,
        queues: 4,
    }
}

fn port(mode: SocketMode, queues: u16, mac: Option<&str>) -> Device {
    Device {
        kind: Kind::Interface {
            mac: mac.map(str::to_owned),
        },
        name: "p0".into(),
        socket: "/run/p0.sock".into(),
        mode,
        queues,
    }
}

const MEMORY: &str =
    "-object memory-backend-memfd,id=mem,size=4G,share=on -machine memory-backend=mem\n";

#[test]
fn words_for_qemu() {
    let text = disk(SocketMode::Server).lines(Vmm::Qemu).unwrap();
    let expected = "\
-chardev socket,id=char-web,path=/run/a,,b'.sock,reconnect-ms=200
-device vhost-user-blk-pci,id=web,chardev=char-web,num-queues=4
";
    assert_eq!(text, format!("{MEMORY}{expected}"));
    let mac = Some("52:54:00:00:00:01");
    let text = port(SocketMode::Client, 2, mac).lines(Vmm::Qemu).unwrap();
    let expected = "\
-chardev socket,id=char-p0,path=/run/p0.sock,server=on,wait=off
-netdev vhost-user,id=net-p0,chardev=char-p0,queues=2
-device virtio-net-pci,id=p0,netdev=net-p0,mac=52:54:00:00:00:01,mq=on,vectors=6
";
    assert_eq!(text, format!("{MEMORY}{expected}"));
}

#[test]
fn words_for_others() {
    let server = SocketMode::Server;
    let text = port(server, 1, None).lines(Vmm::CloudHypervisor).unwrap();
    let expected = "--memory size=4G,shared=on\n--net vhost_user=true,socket=/run/p0.sock,\
                    num_queues=2,queue_size=256,vhost_mode=client\n";
    assert_eq!(text, expected);
    let text = port(server, 1, None).lines(Vmm::Crosvm).unwrap();
    assert_eq!(text, "--vhost-user type=net,socket=/run/p0.sock\n");
    let text = disk(server).lines(Vmm::Libvirt).unwrap();
    let source = "<source type='unix' path='/run/a,b&apos;.sock'>\
                  <reconnect enabled='yes' timeout='1'/></source>";
    assert!(text.contains(source), "{text}");
    let text = port(SocketMode::Client, 1, None).lines(Vmm::Libvirt);
    assert!(text.unwrap().contains("mode='server'></source>"));
}

#[test]
fn two_ends_that_connect_are_refused() {
    let client = SocketMode::Client;
    let all = [
        disk(client).lines(Vmm::CloudHypervisor),
        disk(client).lines(Vmm::Crosvm),
        port(client, 1, None).lines(Vmm::Crosvm),
    ];
    for refused in all {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("take `client` out"), "{text}");
    }
    assert!(port(client, 1, None).lines(Vmm::CloudHypervisor).is_ok());
}

/// What a monitor is asked that refuses the command `refuses`, and what became of the plug.
fn plugged(device: &Device, refuses: &'static str) -> (Vec<Value>, Result<(), AttachError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let monitor = thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        writeln!(stream.get_mut(), r#"{{"QMP": {{}}}}"#).unwrap();
        let mut asked = Vec::new();
        let mut line = String::new();
        while stream.read_line(&mut line).unwrap() > 0 {
            let request: Value = serde_json::from_str(&line).unwrap();
            let answer = match request["execute"] == refuses {
                true => r#"{"error": {"class": "GenericError", "desc": "no room"}}"#,
                false => r#"{"return": {}}"#,
            };
            writeln!(stream.get_mut(), "{answer}").unwrap();
            asked.push(request);
            line.clear();
        }
        asked.remove(0);
        asked
    });
    let result = device.plug(&path, Some("slot0"));
    (monitor.join().unwrap(), result)
}

fn commands(asked: &[Value]) -> Vec<&str> {
    asked.iter().filter_map(|a| a["execute"].as_str()).collect()
}

#[test]
fn a_device_is_plugged_in_parts() {
    let (asked, result) = plugged(&disk(SocketMode::Server), "");
    result.unwrap();
    assert_eq!(commands(&asked), ["chardev-add", "device_add"]);
    assert_eq!(asked[1]["arguments"]["bus"], "slot0");
    assert_eq!(asked[1]["arguments"]["num-queues"], 4);
    let (asked, result) = plugged(&port(SocketMode::Server, 2, None), "");
    result.unwrap();
    assert_eq!(
        commands(&asked),
        ["chardev-add", "netdev_add", "device_add"]
    );
    assert_eq!(asked[2]["arguments"]["vectors"], 6);
}

#[test]
fn what_was_plugged_is_taken_back_when_the_rest_is_refused() {
    let (asked, result) = plugged(&port(SocketMode::Server, 1, None), "device_add");
    let text = result.unwrap_err().to_string();
    assert!(text.contains("no room"), "{text}");
    let undone = [
        "chardev-add",
        "netdev_add",
        "device_add",
        "netdev_del",
        "chardev-remove",
    ];
    assert_eq!(commands(&asked), undone);
}
