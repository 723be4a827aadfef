//! The MQTT source against a real mosquitto that asks who it is: certificates and passwords, right and wrong, and what is
//! said about them.
#![allow(clippy::disallowed_methods, reason = "the tests live in real time")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use bedside_agent::config::ClockTrust;
use bedside_tests::real::intake::{Intake, broker, numbered, publish, run, until};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[test]
fn tls_with_a_private_authority_and_a_client_certificate() {
    run(async {
        let certificates = tempfile::tempdir().unwrap();
        write_certificates(certificates.path());
        let at = |name: &str| certificates.path().join(name).display().to_string();
        let broker = broker(&format!(
            "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
            at("ca.pem"),
            at("server.pem"),
            at("server.key")
        ));
        let url = format!("mqtts://localhost:{}", broker.port);
        let (ca, client) = (
            format!("tls.ca_file = '{}'\n", at("ca.pem")),
            format!(
                "tls.cert_file = '{}'\ntls.key = 'file:{}'\n",
                at("client.pem"),
                at("client.key")
            ),
        );
        for (members, expected) in [
            (String::new(), "set `tls.ca_file`"),
            (
                format!("tls.ca_file = '{}'\n", at("other-ca.pem")),
                "set `tls.ca_file`",
            ),
            (ca.clone(), "wants a client certificate"),
        ] {
            let rig = Intake::start(&url, &members, Vec::new());
            until("an error", || rig.status.error().is_some()).await;
            let error = rig.status.error().unwrap();
            assert!(error.text.contains(expected), "{}", error.text);
            rig.source.abort();
        }
        let wrong_name = format!("mqtts://127.0.0.1:{}", broker.port);
        let rig = Intake::start(&wrong_name, &format!("{ca}{client}"), Vec::new());
        until("an error", || rig.status.error().is_some()).await;
        assert!(rig.status.error().unwrap().text.contains("another name"));
        rig.source.abort();

        for protocol in ["5", "3.1.1"] {
            let members = format!("protocol = '{protocol}'\n{ca}{client}");
            let mut rig = Intake::start(&url, &members, Vec::new());
            rig.connected().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let tls = [
                "--cafile",
                &at("ca.pem"),
                "--cert",
                &at("client.pem"),
                "--key",
                &at("client.key"),
                "-h",
                "localhost",
            ]
            .map(str::to_owned);
            let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
            publish(&broker, numbered(0..100), &tls).join().unwrap();
            rig.store_all(100).await;
            rig.assert_all(100);
            rig.source.abort();
        }
    });
}

#[test]
fn a_certificate_out_of_its_time_waits_for_the_clock_while_that_is_not_set() {
    run(async {
        let certificates = tempfile::tempdir().unwrap();
        write_certificates(certificates.path());
        let at = |name: &str| certificates.path().join(name).display().to_string();
        let broker = broker(&format!(
            "cafile {}\ncertfile {}\nkeyfile {}\n",
            at("ca.pem"),
            at("expired.pem"),
            at("expired.key")
        ));
        let url = format!("mqtts://localhost:{}", broker.port);
        let members = format!("tls.ca_file = '{}'\n", at("ca.pem"));
        // Nothing says here that the time is synchronised.
        for (trust, waiting) in [(ClockTrust::Ntp, true), (ClockTrust::Always, false)] {
            let rig = Intake::with_clock(&url, &members, Vec::new(), trust);
            until("an error", || rig.status.error().is_some()).await;
            assert!(
                rig.status
                    .error()
                    .unwrap()
                    .text
                    .contains("not valid at this time")
            );
            assert_eq!(
                rig.status.is_waiting_for_clock(),
                waiting && !Path::new("/run/systemd/timesync/synchronized").exists()
            );
            rig.source.abort();
        }
    });
}

fn write_certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ca, other) = (authority("ward"), authority("somebody else"));
    write("ca.pem", ca.pem());
    write("other-ca.pem", other.pem());
    for (file, name) in [
        ("server", "localhost"),
        ("client", "gateway-12"),
        ("expired", "localhost"),
    ] {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if file == "expired" {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        write(&format!("{file}.pem"), params.signed_by(&key, &ca).unwrap().pem());
        write(&format!("{file}.key"), key.serialize_pem());
    }
}

#[test]
fn a_wrong_password_is_said_and_the_right_one_taken_without_a_restart() {
    for protocol in ["5", "3.1.1"] {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let (passwords, secret) = (folder.path().join("passwords"), folder.path().join("secret"));
            let made = Command::new("mosquitto_passwd")
                .args(["-c", "-b"])
                .arg(&passwords)
                .args(["gateway-12", "correct horse"])
                .status();
            assert!(made.expect("mosquitto_passwd is installed").success());
            let broker = broker(&format!(
                "allow_anonymous false\npassword_file {}\n",
                passwords.display()
            ));
            std::fs::write(&secret, "guess").unwrap();
            let url = format!("mqtt://127.0.0.1:{}", broker.port);
            let members = format!(
                "protocol = '{protocol}'\nusername = 'gateway-12'\npassword = 'file:{}'",
                secret.display()
            );
            let mut rig = Intake::start(&url, &members, Vec::new());
            until("an error", || rig.status.error().is_some()).await;
            let error = rig.status.error().unwrap();
            assert_eq!(error.name, "UnauthorizedAccessBrokerException");
            assert!(
                error.text.contains("gateway-12") && error.text.contains("`password`"),
                "{}",
                error.text
            );
            std::fs::write(&secret, "correct horse\n").unwrap();
            rig.connected().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            publish(
                &broker,
                numbered(0..5),
                &["-u", "gateway-12", "-P", "correct horse"],
            )
            .join()
            .unwrap();
            rig.store_all(5).await;
        });
    }
}
