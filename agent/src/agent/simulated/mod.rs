//! The whole agent in simulated time: the real store, packs, normalizing, grouping, transform and retry; only the sockets
//! are doubles. Time is virtual, so that a day takes seconds and is the same run for the same seed.

mod budget;
mod damaged_entries;
mod day;
mod device_clocks;
mod gateway_clock;
mod scripted;
mod waits;

use super::{Agent, Simulated, Stopping, run};
use crate::clock;
use crate::config::Config;
use crate::demo::fhir_server::FhirServer;
use crate::forward::http::Http;
use crate::ingest::SourceContext;
use crate::telemetry::status::Summary;
use embassy_time::{Duration, Instant, Timer};
use iomt_mapping::Timestamp;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::sync::watch;
use tokio::task::spawn_local;

/// When simulations begin: 2026-03-01T00:00:00Z.
fn midnight() -> Timestamp {
    Timestamp::from_ticks(17_723_232_000_000_000).unwrap()
}

/// The FHIR server as a destination; more of its lines can follow.
const EHR: &str = "[[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"http://fhir.example/fhir\"\n";
/// A line of it: nothing has to be on the server.
const CREATE: &str = "resolution = \"create\"\n";

/// A gateway with everything in `folder` and one source; `store` holds more lines of `[store]`, `destination` the rest.
fn configuration(folder: &Path, store: &str, destination: &str) -> Config {
    let text = format!(
        "[gateway]\nid = \"bed-1\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[associations]\ndir = \"{0}/associations.d\"\n\
         [store]\ndir = \"{0}/store\"\n{store}\n\
         [[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://broker.example\"\ntopics = [\"wearables/#\"]\n\
         {destination}",
        folder.display()
    );
    toml::from_str(&text).unwrap()
}

/// The pack of a heart rate, ready to be used.
fn drop_pack(folder: &Path) {
    let pack = folder.join("mappings.d/heart-rate");
    std::fs::create_dir_all(&pack).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../board-configs/mappings/heart-rate");
    for file in ["devicecontent.json", "fhirmapping.json"] {
        std::fs::copy(from.join(file), pack.join(file)).unwrap();
    }
}

/// This server, and messages from this loop.
fn surroundings<L: Future<Output = ()> + 'static>(
    server: &FhirServer,
    messages: impl Fn(SourceContext) -> L + 'static,
) -> Simulated {
    let server = server.clone();
    Simulated::sending(messages).with_http(move |_| Http::inline(server.client()))
}
