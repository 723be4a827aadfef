//! Signed assertions for token endpoints (RFC 7523; SMART Backend Services: RS384 and ES384; Entra ID: PS256 with the
//! thumbprint of a registered certificate).

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA384, RSA_PSS_SHA256, RsaKeyPair,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

/// A private key that signs assertions.
pub enum SigningKey {
    /// ECDSA on P-384.
    Es384(EcdsaKeyPair),
    /// RSA, PKCS#1 v1.5.
    Rs384(RsaKeyPair),
}

impl SigningKey {
    /// A key from PEM: PKCS#8 (P-384 or RSA) or PKCS#1 (RSA).
    ///
    /// # Errors
    /// When it is none of them; the text holds nothing of the key.
    pub fn from_pem(pem: &str) -> Result<SigningKey, String> {
        let unusable = || {
            "the key is no PEM private key of P-384 or RSA (2048 bits or more); make one with \
             \"openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384\""
                .to_owned()
        };
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| unusable())?;
        match key {
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                let chance = SystemRandom::new();
                if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, der, &chance) {
                    return Ok(SigningKey::Es384(key));
                }
                RsaKeyPair::from_pkcs8(der)
                    .map(SigningKey::Rs384)
                    .map_err(|_| unusable())
            }
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der())
                .map(SigningKey::Rs384)
                .map_err(|_| unusable()),
            _ => Err(unusable()),
        }
    }

    /// `ES384` or `RS384`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            SigningKey::Es384(_) => "ES384",
            SigningKey::Rs384(_) => "RS384",
        }
    }

    /// An assertion that `client_id` asks `audience` for a token, valid for four minutes from `now` (Unix seconds).
    ///
    /// # Errors
    /// When signing fails.
    pub fn assertion(
        &self,
        client_id: &str,
        audience: &str,
        key_id: Option<&str>,
        now: i64,
    ) -> Result<String, String> {
        let mut header = json!({"alg": self.algorithm(), "typ": "JWT"});
        if let (Some(key_id), Some(header)) = (key_id, header.as_object_mut()) {
            header.insert("kid".to_owned(), key_id.into());
        }
        let claims = json!({
            "iss": client_id,
            "sub": client_id,
            "aud": audience,
            "iat": now,
            // At most five minutes ahead; one of them is for a clock that is a little off.
            "exp": now + 240,
            "jti": crate::random::id(),
        });
        let signed = to_be_signed(&header, &claims);
        let chance = SystemRandom::new();
        let failed = |_| "the assertion cannot be signed".to_owned();
        let signature = match self {
            SigningKey::Es384(key) => key
                .sign(&chance, signed.as_bytes())
                .map_err(failed)?
                .as_ref()
                .to_vec(),
            SigningKey::Rs384(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA384, &chance, signed.as_bytes(), &mut signature)
                    .map_err(failed)?;
                signature
            }
        };
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn to_be_signed(header: &serde_json::Value, claims: &serde_json::Value) -> String {
    let encode = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", encode(header), encode(claims))
}

/// A certificate that is registered for a client, with its key.
pub struct ClientCertificate {
    key: RsaKeyPair,
    /// SHA-256 of the certificate, which names it to the server.
    thumbprint: String,
}

impl ClientCertificate {
    /// From PEM; of several certificates the first is the client's own.
    ///
    /// # Errors
    /// When one of them is missing, the key is no RSA key, or they do not belong together; the text holds nothing of them.
    pub fn from_pem(certificate: &str, key: &str) -> Result<ClientCertificate, String> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| "the client certificate is no PEM certificate".to_owned())?;
        let unusable = || "the key of the client certificate is no PEM private key of RSA".to_owned();
        let pem_key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| unusable())?;
        let signing = rustls::crypto::ring::sign::any_supported_type(&pem_key).map_err(|_| unusable())?;
        rustls::sign::CertifiedKey::new(vec![certificate.clone()], signing)
            .keys_match()
            .map_err(|_| "the key does not belong to the client certificate".to_owned())?;
        let SigningKey::Rs384(key) = SigningKey::from_pem(key).map_err(|_| unusable())? else {
            return Err(unusable());
        };
        let digest = ring::digest::digest(&ring::digest::SHA256, &certificate);
        Ok(ClientCertificate {
            key,
            thumbprint: BASE64_URL_SAFE_NO_PAD.encode(digest),
        })
    }

    /// An assertion that `client_id` asks `audience` for a token, valid for five minutes from `now` (Unix seconds), and for
    /// one before, because our clock may be a little ahead.
    ///
    /// # Errors
    /// When signing fails.
    pub fn assertion(&self, client_id: &str, audience: &str, now: i64) -> Result<String, String> {
        let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": self.thumbprint});
        let claims = json!({
            "aud": audience,
            "iss": client_id,
            "sub": client_id,
            "jti": crate::random::id(),
            "nbf": now - 60,
            "iat": now,
            "exp": now + 300,
        });
        let signed = to_be_signed(&header, &claims);
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(
                &RSA_PSS_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .map_err(|_| "the assertion cannot be signed".to_owned())?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}
