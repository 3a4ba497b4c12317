//! A coordinator that was taken over together with the joiner's key: it tries to have a host believe in another fleet than the one that
//! was there before.

use muster_model::{
    Addition, Attestation, Code, Digest, Document as _, Member, MerkleTree, Purpose, Roster, RosterRevision,
    Secret,
};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body as FromAgent;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use muster_trust::{Authentic, Envelope, SigningKey, assemble_evidence, operators_roster};

use super::{Scaled, fleet_name, made_up, roster_ref};
use crate::harness::forgery::{order, release};
use crate::harness::impostor::Impostor;
use crate::harness::{now, signed, until, versioned};

/// A fleet of one real host, which has seen host-2 added by the real coordinator.
struct Usurped {
    scaled: Scaled,
    impostor: Impostor,
    one: Digest,
    two: Digest,
    /// What operators have signed, and what the real coordinator has put into force.
    base: Authentic<Roster>,
    held: Authentic<Roster>,
    second: (Member, SigningKey),
}

impl Usurped {
    fn begin() -> Self {
        let scaled = Scaled::up(1);
        let fleet = &scaled.fleet;
        let one = fleet.host(1).serves().unwrap().parse().unwrap();
        let two = fleet.push(&versioned("2"), "2").parse().unwrap();
        fleet.json(&["deploy", "2"]).expect_code(0);
        let (base, second) = (scaled.present(), made_up(2));
        crate::harness::Caller::operator(fleet).add_hosts(scaled.adding(vec![second.0.clone()])).unwrap();
        let held = scaled.present();
        let index = fleet.host(1).folder().join("fleets/demo/papers/index.json");
        until("the host keeps the addition", || {
            std::fs::read_to_string(&index).is_ok_and(|index| index.contains(r#""roster":{"revision":3"#))
        });
        let impostor = Impostor::replace(fleet);
        impostor.hear("that it joins", |body| matches!(body, FromAgent::Join(_)).then_some(()));
        impostor.say(ToAgent::Joined(v1::Joined { next_token: vec![9; 32] }));
        impostor.hear("that it has joined", |body| matches!(body, FromAgent::Confirmed(_)).then_some(()));
        Self { impostor, one, two, base, held, second, scaled }
    }

    /// An addition to what operators have signed.
    fn added(&self, revision: u64, follows: &Authentic<Roster>, hosts: &[&Member]) -> Authentic<Roster> {
        let base = operators_roster(&self.base).unwrap();
        let hosts = hosts.iter().map(|host| (*host).clone()).collect();
        let (revision, follows) = (RosterRevision(revision), follows.payload_digest());
        let addition = Addition::new(fleet_name(), revision, follows, &base, hosts).unwrap();
        self.believed(&signed(&addition, &self.scaled.joiner))
    }

    /// Whatever is shown has good signatures.
    fn believed(&self, raw: &[u8]) -> Authentic<Roster> {
        self.scaled.fleet.trust_root().verify_roster(raw, now()).unwrap()
    }

    /// Steps 4 and 5, with the one real host.
    fn attest(&self, k: u64) -> Attestation {
        let to = self.two.as_bytes().to_vec();
        self.impostor.say(ToAgent::Propose(v1::Propose { k, to: to.clone() }));
        let nonce = self.impostor.hear("a fresh nonce", |body| {
            let FromAgent::Fresh(fresh) = body else { return None };
            (fresh.k == k).then_some(fresh.nonce)
        });
        let nonces = MerkleTree::new([nonce.as_slice()]);
        let proof = nonces.proof(0).unwrap();
        self.impostor.say(ToAgent::Attest(v1::Attest {
            k,
            to,
            nonce_root: nonces.root().as_bytes().to_vec(),
            proof_index: proof.index,
            proof_size: proof.size,
            proof_path: proof.path.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
        }));
        let envelope = self.impostor.hear("what it attests", |body| {
            let FromAgent::Attested(attested) = body else { return None };
            Some(attested.envelope)
        });
        Attestation::parse(Envelope::parse(&envelope).unwrap().payload()).unwrap()
    }

    /// Steps 4 to 7 under `roster`, with an order for it that an operator has signed and whatever the others' keys attest.
    fn prepare(&self, k: u64, roster: &Authentic<Roster>, others: &[&(Member, SigningKey)]) {
        let fleet = &self.scaled.fleet;
        let own = self.attest(k);
        let of_host_1 = SigningKey::read(&fleet.host(1).folder().join("attestation.key")).unwrap();
        let attested = roster.document().hosts().iter().map(|member| {
            let Some((_, key)) = others.iter().find(|(other, _)| other == member) else {
                return signed(&own, &of_host_1);
            };
            let commitment = Secret::from_bytes([7; 32]).commitment();
            let purpose = Purpose::Rollout { k: muster_model::RolloutId(k), commitment };
            let Attestation { fleet, challenge, compared, facts, .. } = own.clone();
            signed(&Attestation::new(fleet, member.name.clone(), purpose, challenge, compared, facts), key)
        });
        let evidence = assemble_evidence(&attested.collect::<Vec<_>>());
        let order = order(k, roster_ref(roster), Some(self.one), self.two);
        let hold = |bytes: &[u8]| self.impostor.hold(bytes).as_bytes().to_vec();
        self.impostor.say(ToAgent::Prepare(v1::Prepare {
            k,
            epoch: 2,
            order: hold(&signed(&order, &fleet.operator_key())),
            release: hold(&signed(&release("2", self.two), &fleet.release_key())),
            roster: hold(roster.raw()),
            evidence: hold(&evidence),
        }));
    }

    #[track_caller]
    fn refuses(&self, k: u64, roster: &Authentic<Roster>, others: &[&(Member, SigningKey)], words: &str) {
        self.prepare(k, roster, others);
        let refusal = self.impostor.hear(&format!("that it refuses: {words}"), |body| {
            let FromAgent::Refused(refused) = body else { return None };
            refused.refusal.filter(|_| refused.k == Some(k))
        });
        let blocker = &refusal.blockers[0];
        assert_eq!(blocker.code, Code::RosterChanged.as_str(), "{refusal:?}");
        assert!(blocker.detail.contains(words), "no `{words}`: {refusal:?}");
        self.scaled.fleet.assert_all_serve(&self.one.to_string());
    }
}

#[test]
fn a_host_that_saw_who_was_added_takes_part_in_nothing_without_them() {
    let usurped = Usurped::begin();
    let Usurped { scaled, impostor, base, held, second, .. } = &usurped;
    let (third, fourth) = (made_up(3), made_up(4));

    usurped.refuses(10, base, &[], "older than one that this host has seen");
    let instead = usurped.added(3, base, &[&third.0]);
    usurped.refuses(11, &instead, &[&third], "host-2 was added in revision 3");
    let later = usurped.added(4, held, &[&third.0, &fourth.0]);
    usurped.refuses(12, &later, &[&third, &fourth], "host-2 was added in revision 3");
    // Operators who are shown an old roster sign the next one after it.
    let (policy, hosts) = (base.document().policy(), base.document().hosts().to_vec());
    let unaware = Roster::new(fleet_name(), RosterRevision(3), policy, hosts).unwrap().issued(now());
    let unaware = usurped.believed(&signed(&unaware, &scaled.fleet.operator_key()));
    usurped.refuses(13, &unaware, &[], "it is revision 3, and revision 3 with added hosts has been seen");

    // Shown outside of a rollout, they are not kept for a new coordinator either.
    let shown = impostor.hold(later.raw()).as_bytes().to_vec();
    impostor.say(ToAgent::RosterShown(v1::RosterShown { roster: shown }));
    let agent = scaled.fleet.host(1).agent;
    until("the agent says that it keeps none of it", || agent.log().contains("a roster is not kept"));

    // Nothing else keeps it: with host-2 in it, it takes part.
    let longer = usurped.added(4, held, &[&second.0, &third.0]);
    usurped.prepare(14, &longer, &[second, &third]);
    impostor.hear("that it is prepared", |body| matches!(body, FromAgent::Prepared(_)).then_some(()));
}
