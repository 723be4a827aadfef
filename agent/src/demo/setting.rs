//! The folder of a demo: configuration, mapping packs and store, left behind for the curious.

use anyhow::Context as _;
use std::fmt::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// The ready mapping packs: name, device mapping, FHIR mapping.
const PACKS: [(&str, &str, &str); 3] = [
    (
        "heart-rate",
        include_str!("../../../board-configs/mappings/heart-rate/devicecontent.json"),
        include_str!("../../../board-configs/mappings/heart-rate/fhirmapping.json"),
    ),
    (
        "pulse-oximeter",
        include_str!("../../../board-configs/mappings/pulse-oximeter/devicecontent.json"),
        include_str!("../../../board-configs/mappings/pulse-oximeter/fhirmapping.json"),
    ),
    (
        "blood-pressure",
        include_str!("../../../board-configs/mappings/blood-pressure/devicecontent.json"),
        include_str!("../../../board-configs/mappings/blood-pressure/fhirmapping.json"),
    ),
];

/// Makes a new folder below the system's temporary one, for this user only.
pub(super) fn make_folder() -> anyhow::Result<PathBuf> {
    let id = crate::random::id();
    let name = format!("bedside-agent-demo-{}", id.get(..8).unwrap_or(&id));
    let folder = std::env::temp_dir().join(name);
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

/// Writes the mapping packs below `folder`.
pub(super) fn write_packs(folder: &Path) -> anyhow::Result<()> {
    for (name, device, fhir) in PACKS {
        let pack = folder.join("mappings.d").join(name);
        std::fs::create_dir_all(&pack)?;
        std::fs::write(pack.join("devicecontent.json"), device)?;
        std::fs::write(pack.join("fhirmapping.json"), fhir)?;
    }
    Ok(())
}

/// Where the parts of the demo are.
pub(super) struct Places<'a> {
    pub broker: &'a str,
    pub serial_port: &'a str,
    pub fhir: &'a str,
    pub listen: &'a str,
}

/// Writes `agent.toml` into `folder`, as an operator would, and gives its path.
pub(super) fn write_configuration(folder: &Path, places: &Places) -> anyhow::Result<PathBuf> {
    let Places {
        broker,
        serial_port,
        fhir,
        listen,
    } = places;
    let mut text = String::from("# The configuration of a demo. Paths are relative to this file.\n\n");
    write!(
        text,
        "[gateway]\n\
         id = \"demo\"\n\n\
         [mappings]\n\
         dir = \"mappings.d\"\n\n\
         [[source]]\n\
         name = \"ward\"\n\
         kind = \"mqtt\"\n\
         url = \"{broker}\"\n\
         topics = [\"wearables/+/telemetry\"]\n\
         device_id_from = {{ topic_level = 2 }}\n\n\
         [[source]]\n\
         name = \"oximeter\"\n\
         kind = \"serial\"\n\
         port = \"{serial_port}\"\n\
         framing = \"lines\"\n\
         format = \"csv\"\n\
         header = true                         # the first line names the columns\n\n\
         [[destination]]\n\
         name = \"fhir-server\"\n\
         kind = \"fhir\"\n\
         url = \"{fhir}\"\n\
         resolution = \"create\"                 # missing Devices and Patients are created\n\n\
         [store]\n\
         dir = \"store\"\n\n\
         [web]\n\
         listen = \"{listen}\"\n\n\
         [clock]\n\
         trust = \"always\"                      # a demo does not wait for time synchronisation\n"
    )?;
    let path = folder.join("agent.toml");
    std::fs::write(&path, text)?;
    Ok(path)
}
