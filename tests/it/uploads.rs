//! Uploads that stop in the middle, while there is room for one at a time.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::time::{Duration, Instant};

use muster_model::Digest;
use muster_mtls::{ClientTls, ConnectOptions, Role};
use muster_proto::v1;
use muster_proto::v1::blobs_client::BlobsClient;
use muster_proto::v1::upload_request::Part;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::harness::{Fleet, PATIENCE, wait_until};

/// How long an upload may be silent here.
const IDLE: Duration = Duration::from_secs(1);

struct Uploader {
    runtime: Runtime,
    client: BlobsClient<Channel>,
}

/// An upload that goes on for as long as its sender lives.
type Held = (mpsc::Sender<v1::UploadRequest>, JoinHandle<Result<Response<v1::UploadResponse>, Status>>);

impl Uploader {
    fn of(fleet: &Fleet) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tls = ClientTls::new(&fleet.credentials(Role::Operator, "alice")).unwrap();
        let address = fleet.address();
        let connecting = async { muster_mtls::connect(&address, &tls, ConnectOptions::default()).await };
        let client = BlobsClient::new(runtime.block_on(connecting).unwrap());
        Self { runtime, client }
    }

    /// Sends these parts, and neither more nor the end.
    fn hold(&self, parts: Vec<Part>) -> Held {
        let (sender, requests) = mpsc::channel(parts.len().max(1));
        for part in parts {
            sender.blocking_send(v1::UploadRequest { part: Some(part) }).unwrap();
        }
        let mut client = self.client.clone();
        let call = async move { client.upload(ReceiverStream::new(requests)).await };
        (sender, self.runtime.spawn(call))
    }

    fn wait<T>(&self, running: JoinHandle<T>) -> T {
        let waiting = async { tokio::time::timeout(PATIENCE, running).await };
        self.runtime.block_on(waiting).expect("it did not end in time").unwrap()
    }
}

fn parts(bytes: &[u8], size: u64) -> Vec<Part> {
    let header = v1::BlobHeader { digest: Digest::of(bytes).as_bytes().to_vec(), size };
    vec![Part::Header(header), Part::Chunk(bytes.to_vec())]
}

fn incoming(fleet: &Fleet) -> usize {
    fs::read_dir(fleet.dir().join("coordinator/state/blobs/incoming")).map_or(0, Iterator::count)
}

#[test]
fn an_upload_that_falls_silent_gives_its_place_to_the_next() {
    let fleet = Fleet::up(1);
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let config = fleet.dir().join("coordinator/coordinator.toml");
    let mut config = OpenOptions::new().append(true).open(config).unwrap();
    writeln!(config, "uploads_max = 1\nupload_idle_timeout_ms = {}", IDLE.as_millis()).unwrap();
    coordinator.start(&[]);
    fleet.wait_connected(1);
    let uploader = Uploader::of(&fleet);

    // One that stops after its first bytes, and one that says nothing at all.
    for stalled in [parts(b"the first bytes", 1 << 20), Vec::new()] {
        let has_begun = !stalled.is_empty();
        let began = Instant::now();
        let (open, first) = uploader.hold(stalled);
        if has_begun {
            let begins = || (incoming(&fleet) == 1).then_some(());
            wait_until("the upload has its place", PATIENCE, begins);
            let (whole, second) = uploader.hold(parts(b"all of it", 9));
            drop(whole);
            uploader.wait(second).expect("it is taken once it is its turn");
            assert!(began.elapsed() >= IDLE, "two were written at the same time");
        }
        let status = uploader.wait(first).expect_err("it is given up");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
        assert!(status.message().contains("sent nothing for 1s"), "{status}");
        drop(open);
    }
    wait_until("nothing is left of them", PATIENCE, || (incoming(&fleet) == 0).then_some(()));
}
