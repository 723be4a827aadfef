//! Addresses of Azure services, checked as the MedTech service checks them and refused in its own words.

/// What the MedTech service says of a namespace that cannot be one.
pub(super) const INVALID_NAMESPACE: &str =
    "`fullyQualifiedEventHubNamespace` is null, empty, or formatted incorrectly";

/// What the MedTech service says of a FHIR service that cannot be one.
pub(super) const INVALID_FHIR_SERVICE: &str = "The `fhirServiceResourceId` provided is invalid";

const CLOUDS: [&str; 4] = [
    ".servicebus.windows.net",
    ".servicebus.usgovcloudapi.net",
    ".servicebus.chinacloudapi.cn",
    ".servicebus.cloudapi.de",
];

const FHIR_HOST: &str = ".fhir.azurehealthcareapis.com";

/// Checks `{namespace}.servicebus.windows.net`: up to 50 letters, digits and hyphens, a letter first, no hyphen last. (New
/// namespaces have at least 6; a private cloud's may be shorter.)
///
/// # Errors
/// What to write instead.
pub(super) fn check_namespace(text: &str) -> Result<(), String> {
    const FORM: &str = "Write the host name that the portal shows, {namespace}.servicebus.windows.net";
    let lower = text.to_ascii_lowercase();
    if let Some(name) = CLOUDS.iter().find_map(|cloud| lower.strip_suffix(cloud)) {
        if is_namespace_name(name) {
            return Ok(());
        }
        if !name.contains(['/', ':', '.']) {
            return Err(
                "A namespace has up to 50 letters, digits and hyphens; it begins with a letter and ends with a letter or \
                 digit."
                    .to_owned(),
            );
        }
    }
    // Whatever else was pasted (an address, a connection string's endpoint, the short name), the name may be in it.
    let bare = lower.split_once("://").map_or(lower.as_str(), |(_, rest)| rest);
    let host = bare.split(['/', ':', ';']).next().unwrap_or_default();
    let name = CLOUDS
        .iter()
        .find_map(|cloud| host.strip_suffix(cloud))
        .unwrap_or(host);
    let cloud = CLOUDS
        .iter()
        .find(|cloud| host.ends_with(**cloud))
        .unwrap_or(&".servicebus.windows.net");
    if is_namespace_name(name) {
        return Err(format!("Write \"{name}{cloud}\"."));
    }
    Err(format!("{FORM}."))
}

fn is_namespace_name(name: &str) -> bool {
    (1..=50).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Base address of a FHIR server, without a slash at its end: an `http` or `https` address, or the resource id of an
/// Azure FHIR service.
///
/// # Errors
/// What to write instead.
pub(super) fn fhir_address(text: &str) -> Result<String, String> {
    const FORMS: &str = "Write the base address of the server (\"https://fhir.hospital.example/r4\"), or for an Azure FHIR \
                         service its resource id (\"/subscriptions/../resourceGroups/../providers/\
                         Microsoft.HealthcareApis/workspaces/{workspace}/fhirservices/{service}\").";
    let text = text.trim_end_matches('/');
    if text.starts_with('/') {
        let segments: Vec<&str> = text.split('/').skip(1).collect();
        return match segments.as_slice() {
            [
                subscriptions,
                _,
                groups,
                _,
                providers,
                provider,
                workspaces,
                workspace,
                services,
                service,
            ] if subscriptions.eq_ignore_ascii_case("subscriptions")
                && groups.eq_ignore_ascii_case("resourceGroups")
                && providers.eq_ignore_ascii_case("providers")
                && provider.eq_ignore_ascii_case("Microsoft.HealthcareApis")
                && workspaces.eq_ignore_ascii_case("workspaces")
                && services.eq_ignore_ascii_case("fhirservices") =>
            {
                fhir_service_address(workspace, service)
            }
            _ => Err(FORMS.to_owned()),
        };
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let may_be_host = text.contains('.') && !text.contains([' ', '@']);
        return Err(if may_be_host {
            format!("Write \"https://{text}\".")
        } else {
            FORMS.to_owned()
        });
    };
    if !matches!(scheme, "http" | "https") {
        return Err(format!("Write \"https://{rest}\"."));
    }
    let uri: ureq::http::Uri = text.parse().map_err(|_| FORMS.to_owned())?;
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err("Write no user name and password into the address: auth = { kind = \"basic\", username = \"..\", \
                    password = \"credential:NAME\" }."
            .to_owned());
    }
    let port = uri.authority().map_or(Ok(None), port_of);
    if !is_host(&host) || uri.query().is_some() || text.contains('#') || port.is_err() {
        return Err(FORMS.to_owned());
    }
    if let Some(name) = host.strip_suffix(FHIR_HOST)
        && !name.contains('-')
    {
        return Err(format!(
            "The host of an Azure FHIR service is {{workspace}}-{{service}}{FHIR_HOST}; \"{name}\" has no hyphen."
        ));
    }
    Ok(text.to_owned())
}

/// Address of the FHIR service `service` in the workspace `workspace`.
///
/// # Errors
/// What to write instead.
pub(super) fn fhir_service_address(workspace: &str, service: &str) -> Result<String, String> {
    let is_name = |name: &str, hyphens: bool| {
        (3..=24).contains(&name.len())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || hyphens && c == '-')
            && !name.starts_with('-')
            && !name.ends_with('-')
    };
    if !is_name(workspace, false) {
        return Err("The name of a workspace has 3 to 24 letters and digits.".to_owned());
    }
    if !is_name(service, true) {
        return Err("The name of a FHIR service has 3 to 24 letters, digits and hyphens.".to_owned());
    }
    Ok(format!(
        "https://{}-{}{FHIR_HOST}",
        workspace.to_ascii_lowercase(),
        service.to_ascii_lowercase()
    ))
}

/// The port that an address names.
///
/// # Errors
/// When it is no number from 1 to 65535.
pub(super) fn port_of(authority: &ureq::http::uri::Authority) -> Result<Option<u16>, &'static str> {
    let after_user = authority.as_str().rsplit('@').next().unwrap_or_default();
    match after_user
        .strip_prefix(authority.host())
        .and_then(|rest| rest.strip_prefix(':'))
    {
        None => Ok(None),
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err("a port is a number from 1 to 65535"),
        },
    }
}

/// Whether `host` can be a host: a name, an IPv4 address, or an IPv6 address in brackets.
pub(super) fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_taken_or_refused_with_what_to_write() {
        for good in [
            "ward.servicebus.windows.net",
            "Ward-West2.servicebus.windows.net",
            "ward-west.servicebus.usgovcloudapi.net",
        ] {
            assert_eq!(check_namespace(good), Ok(()), "{good}");
        }
        let table = [
            ("", "{namespace}.servicebus.windows.net"),
            ("ward-west", "Write \"ward-west.servicebus.windows.net\"."),
            (
                "sb://ward-west.servicebus.windows.net/",
                "Write \"ward-west.servicebus.windows.net\".",
            ),
            (
                "Endpoint=sb://ward-west.servicebus.windows.net/;SharedAccessKeyName=x",
                "Write \"ward-west.servicebus.windows.net\".",
            ),
            (
                "https://ward-west.servicebus.windows.net:443",
                "Write \"ward-west.servicebus.windows.net\".",
            ),
            ("1ward-west.servicebus.windows.net", "begins with a letter"),
            ("ward-.servicebus.windows.net", "up to 50"),
            ("ward west.servicebus.windows.net", "up to 50"),
            ("ward.example.net", "{namespace}.servicebus.windows.net"),
        ];
        for (text, advice) in table {
            let found = check_namespace(text).unwrap_err();
            assert!(found.contains(advice), "{text}: {found}");
        }
    }

    #[test]
    fn fhir_addresses_are_taken_in_three_forms() {
        let service = "https://ward-ehr.fhir.azurehealthcareapis.com";
        let table = [
            (
                "https://fhir.hospital.example/r4",
                "https://fhir.hospital.example/r4",
            ),
            ("http://127.0.0.1:8103/", "http://127.0.0.1:8103"),
            ("http://[::1]:8103/fhir/R4/", "http://[::1]:8103/fhir/R4"),
            ("http://localhost", "http://localhost"),
            (
                "/subscriptions/1-2/resourceGroups/g/providers/Microsoft.HealthcareApis/workspaces/Ward/fhirservices/ehr",
                service,
            ),
            (
                "/subscriptions/1-2/resourcegroups/g/providers/microsoft.healthcareapis/workspaces/ward/FhirServices/ehr/",
                service,
            ),
            (service, service),
        ];
        for (text, address) in table {
            assert_eq!(fhir_address(text).as_deref(), Ok(address), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_fhir_address_is_refused_with_what_to_write() {
        let table = [
            ("", "resource id"),
            ("ehr", "resource id"),
            ("fhir.hospital.example/r4", "\"https://fhir.hospital.example/r4\""),
            ("ftp://fhir.hospital.example", "\"https://fhir.hospital.example\""),
            ("https://", "resource id"),
            ("https://bad host/r4", "resource id"),
            ("https://-fhir.example", "resource id"),
            ("https://fhir..example", "resource id"),
            ("https://fhir.example:99999", "resource id"),
            ("https://fhir.example/r4?x=1", "resource id"),
            ("https://me:secret@fhir.example", "credential:NAME"),
            ("https://ward.fhir.azurehealthcareapis.com", "no hyphen"),
            (
                "/subscriptions/1/providers/Microsoft.HealthcareApis/workspaces/w/fhirservices/f",
                "resource id",
            ),
            (
                "/subscriptions/1/resourceGroups/g/providers/Microsoft.HealthcareApis/workspaces/w/fhirservices/ehr",
                "workspace has 3 to 24",
            ),
        ];
        for (text, advice) in table {
            let found = fhir_address(text).unwrap_err();
            assert!(found.contains(advice), "{text}: {found}");
        }
    }
}
