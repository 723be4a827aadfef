use super::super::tests::{endpoint, simulate};
use super::*;
use crate::message::Payload;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{ECDSA_P384_SHA384_FIXED, KeyPair as _, RSA_PKCS1_2048_8192_SHA384, UnparsedPublicKey};

fn smart(folder: &Path, pem: &str) -> TokenSource {
    std::fs::write(folder.join("key"), pem).unwrap();
    TokenSource::Smart {
        base: "https://fhir.example/r4".to_owned(),
        client_id: "bedside".to_owned(),
        key: SecretRef::File(folder.join("key")),
        key_id: Some("k1".to_owned()),
        scope: None,
        token_url: None,
    }
}

fn assertion_of(form: &[u8]) -> String {
    std::str::from_utf8(form)
        .unwrap()
        .split('&')
        .find_map(|pair| pair.strip_prefix("client_assertion="))
        .unwrap()
        .to_owned()
}

#[test]
fn smart_backend_discovers_the_endpoint_and_signs_what_a_verifier_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let rsa = std::process::Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .unwrap();
    let rsa = String::from_utf8(rsa.stdout).unwrap();
    for (pem, algorithm) in [(p384.serialize_pem(), "ES384"), (rsa, "RS384")] {
        let source = smart(folder.path(), &pem);
        let (asked, http) = endpoint(&[
            (
                200,
                r#"{"token_endpoint":"https://auth.example/token","token_endpoint_auth_signing_alg_values_supported":["RS384","ES384"]}"#,
            ),
            (
                200,
                r#"{"access_token":"t","expires_in":300,"token_type":"bearer"}"#,
            ),
        ]);
        let token = simulate(source.fetch(&http)).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!((token.text.as_str(), token.use_for_us), ("t", 225_000_000));
        let asked = asked.asked.lock().unwrap();
        assert_eq!(
            asked[0].url,
            "https://fhir.example/r4/.well-known/smart-configuration"
        );
        assert_eq!(asked[1].url, "https://auth.example/token");
        let assertion = assertion_of(asked[1].body.bytes());
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let decode = |part: &str| -> Value {
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        let (header, claims) = (decode(header), decode(claims));
        assert_eq!(
            (header["alg"].as_str(), header["kid"].as_str()),
            (Some(algorithm), Some("k1"))
        );
        assert_eq!(
            (claims["iss"].as_str(), claims["sub"].as_str()),
            (Some("bedside"), Some("bedside"))
        );
        assert_eq!(claims["aud"], "https://auth.example/token");
        let lives = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert!(lives > 0 && lives <= 300, "at most five minutes ahead");
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
        match SigningKey::from_pem(&pem).unwrap() {
            SigningKey::Es384(key) => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.public_key().as_ref().to_vec())
                    .verify(signed.as_bytes(), &signature)
            }
            SigningKey::Rs384(key) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA384, key.public_key().as_ref().to_vec())
                    .verify(signed.as_bytes(), &signature)
            }
        }
        .unwrap();
    }
}

#[test]
fn smart_backend_refuses_an_endpoint_in_the_clear_and_an_algorithm_that_the_server_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let source = smart(folder.path(), &key.serialize_pem());
    for (document, word) in [
        (r#"{"token_endpoint":"http://auth.example/token"}"#, "token_url"),
        (r#"{"issuer":"x"}"#, "token_url"),
        (
            r#"{"token_endpoint":"https://a/t","token_endpoint_auth_signing_alg_values_supported":["RS384"]}"#,
            "ES384",
        ),
    ] {
        let (_, http) = endpoint(&[(200, document)]);
        match simulate(source.fetch(&http)) {
            Err(AuthError::Setup(text)) => assert!(text.contains(word), "{text}"),
            _ => panic!("{document}"),
        }
    }
}

#[test]
fn managed_identity_of_a_virtual_machine_takes_the_expiry_as_text() {
    let (asked, http) = endpoint(&[(
        200,
        r#"{"access_token":"m","expires_on":"1790003600","resource":"r"}"#,
    )]);
    let source = TokenSource::Managed {
        resource: "https://fhir.example/".to_owned(),
        client_id: Some("user 1".to_owned()),
        place: ManagedPlace::Imds {
            endpoint: "http://169.254.169.254/metadata/identity/oauth2/token".to_owned(),
        },
    };
    // The simulated wall clock stands at 1790000000.
    let token = simulate(source.fetch(&http)).unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!((token.text.as_str(), token.use_for_us), ("m", 3_300_000_000));
    let asked = asked.asked.lock().unwrap();
    assert_eq!(
        asked[0].url,
        "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Ffhir.example%2F&client_id=user%201"
    );
    assert_eq!(asked[0].headers, [("metadata", "true".to_owned())]);
}

#[test]
fn the_arc_agent_proves_itself_by_a_file_of_its_own_folder_only() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.key"), "proof").unwrap();
    std::fs::write(folder.path().join("a.txt"), "no key").unwrap();
    std::fs::write(folder.path().join("big.key"), vec![b'x'; 5000]).unwrap();
    std::fs::write(outside.path().join("b.key"), "stolen").unwrap();
    std::os::unix::fs::symlink(outside.path().join("b.key"), folder.path().join("link.key")).unwrap();
    let source = |folder: &Path| TokenSource::Managed {
        resource: "r".to_owned(),
        client_id: None,
        place: ManagedPlace::Arc {
            endpoint: "http://localhost:40342/t".to_owned(),
            folder: folder.to_owned(),
        },
    };
    for (path, read) in [
        (folder.path().join("a.key"), true),
        (folder.path().join("a.txt"), false),
        (folder.path().join("big.key"), false),
        (folder.path().join("link.key"), false),
        (outside.path().join("b.key"), false),
        (
            folder
                .path()
                .join("../")
                .join(outside.path().file_name().unwrap())
                .join("b.key"),
            false,
        ),
    ] {
        let (asked, http) = endpoint(&[(200, r#"{"access_token":"arc","expires_in":"3600"}"#)]);
        asked.answers.lock().unwrap().push_front(HttpResponse {
            status: 401,
            headers: vec![(
                "www-authenticate".to_owned(),
                format!("Basic realm={}", path.display()),
            )],
            body: Payload::default(),
        });
        let token = simulate(source(folder.path()).fetch(&http));
        assert_eq!(token.is_ok(), read, "{}", path.display());
        let asked = asked.asked.lock().unwrap();
        let sent = asked.last().unwrap().authorization.as_deref();
        assert_eq!(sent, read.then_some("Basic proof"), "{}", path.display());
    }
}

#[test]
fn without_a_managed_identity_the_error_says_so() {
    let (_, http) = endpoint(&[]);
    let source = TokenSource::Managed {
        resource: "r".to_owned(),
        client_id: None,
        place: ManagedPlace::Imds {
            endpoint: "http://169.254.169.254/t".to_owned(),
        },
    };
    assert!(matches!(
        simulate(source.fetch(&http)),
        Err(AuthError::NoManagedIdentity(_))
    ));
}

fn openssl(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let output = std::process::Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[test]
fn a_client_certificate_signs_what_openssl_accepts_and_is_named_by_its_thumbprint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let made = openssl(
        path,
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-days",
            "30",
            "-subj",
            "/CN=bed-12",
        ],
    );
    assert!(made.0);
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| path.join(name));
    let both = path.join("both.pem");
    let joined = [&certificate, &key]
        .map(|file| std::fs::read_to_string(file).unwrap())
        .concat();
    std::fs::write(&both, joined).unwrap();
    for (certificate, key) in [(certificate, Some(SecretRef::File(key))), (both, None)] {
        let source = TokenSource::ClientCredentials {
            token_url: "https://login.example/t/oauth2/v2.0/token".to_owned(),
            client_id: "bedside".to_owned(),
            proof: Proof::Certificate { certificate, key },
            scope: Some("https://fhir.example/.default".to_owned()),
        };
        let (asked, http) = endpoint(&[(200, r#"{"access_token":"t","expires_in":3600}"#)]);
        simulate(source.fetch(&http)).unwrap_or_else(|error| panic!("{error:?}"));
        let asked = asked.asked.lock().unwrap();
        let form = String::from_utf8(asked[0].body.bytes().to_vec()).unwrap();
        for part in [
            "grant_type=client_credentials",
            "client_id=bedside",
            "scope=https%3A%2F%2Ffhir.example%2F.default",
            "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer",
        ] {
            assert!(
                form.split('&').any(|pair| pair == part),
                "{part} is not in {form}"
            );
        }
        assert!(!form.contains("client_secret"));
        let assertion = assertion_of(form.as_bytes());
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        std::fs::write(path.join("signed"), signed).unwrap();
        std::fs::write(
            path.join("signature"),
            BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap(),
        )
        .unwrap();
        assert!(
            openssl(
                path,
                &[
                    "x509",
                    "-in",
                    "cert.pem",
                    "-pubkey",
                    "-noout",
                    "-out",
                    "public.pem"
                ]
            )
            .0
        );
        let verify = [
            "dgst",
            "-sha256",
            "-sigopt",
            "rsa_padding_mode:pss",
            "-sigopt",
            "rsa_pss_saltlen:32",
            "-verify",
            "public.pem",
            "-signature",
            "signature",
            "signed",
        ];
        assert_eq!(openssl(path, &verify), (true, "Verified OK".to_owned()));
        let (header, claims) = signed.split_once('.').unwrap();
        let decode = |part: &str| -> Value {
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        let (header, claims) = (decode(header), decode(claims));
        let fingerprint = openssl(
            path,
            &["x509", "-in", "cert.pem", "-noout", "-fingerprint", "-sha256"],
        )
        .1;
        let thumbprint = BASE64_URL_SAFE_NO_PAD
            .decode(header["x5t#S256"].as_str().unwrap())
            .unwrap();
        let thumbprint: Vec<String> = thumbprint.iter().map(|byte| format!("{byte:02X}")).collect();
        assert!(fingerprint.ends_with(&thumbprint.join(":")), "{fingerprint}");
        assert_eq!(header["alg"], "PS256");
        assert_eq!(claims["aud"], "https://login.example/t/oauth2/v2.0/token");
        assert_eq!(
            (&claims["iss"], &claims["sub"]),
            (&"bedside".into(), &"bedside".into())
        );
        let lives = claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap();
        assert!((300..=600).contains(&lives) && claims["jti"].as_str().unwrap().len() > 15);
    }
}

#[test]
fn a_certificate_and_a_key_that_do_not_belong_together_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for name in ["a", "b"] {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let arguments = [
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &certificate,
            "-subj",
            "/CN=x",
        ];
        assert!(openssl(path, &arguments).0);
    }
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    let curve = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for (certificate, key, expected) in [
        (read("a.pem"), read("b.key"), "does not belong"),
        (read("a.key"), read("a.key"), "no PEM certificate"),
        (read("a.pem"), "secret".to_owned(), "no PEM private key"),
        (read("a.pem"), curve.serialize_pem(), "does not belong"),
    ] {
        match ClientCertificate::from_pem(&certificate, &key) {
            Err(text) => assert!(text.contains(expected), "{text}"),
            Ok(_) => panic!("{expected}"),
        }
    }
}
