//! The DSSE envelope, and who is believed to have signed it.

use muster_model::{Document as _, Order, RoleKeys};
use muster_trust::{Authentic, Envelope, SIGNATURES_MAX, join_signatures, verify};

use crate::Verdict;
use crate::fixture::{KEY_PUBLIC, OTHER_KEY, key_alone, order};

pub(crate) fn run(bytes: &[u8]) -> Verdict {
    let Ok(envelope) = Envelope::parse(bytes) else {
        assert!(verify::<Order>(bytes, &key_alone()).is_err(), "what is no envelope is not verified");
        return Verdict::Refused;
    };
    assert!(envelope.raw()[..] == *bytes, "the bytes are kept as they came");
    assert!(envelope.payload().len() <= bytes.len());
    assert!((1..=SIGNATURES_MAX).contains(&envelope.signatures().len()));
    assert_eq!(Envelope::parse(envelope.raw()).unwrap(), envelope);

    // Two keys of which one signs no orders: no bytes whatsoever reach a threshold of two.
    let keys = vec![KEY_PUBLIC.clone(), OTHER_KEY.public().clone()];
    assert!(verify::<Order>(bytes, &RoleKeys { threshold: 2, keys: keys.clone() }).is_err());
    let twice = vec![KEY_PUBLIC.clone(), KEY_PUBLIC.clone()];
    assert!(verify::<Order>(bytes, &RoleKeys { threshold: 2, keys: twice }).is_err());

    let either = RoleKeys { threshold: 1, keys };
    let verified: Result<Authentic<Order>, _> = verify(bytes, &either);
    if let Ok(verified) = &verified {
        assert_eq!(**verified.document(), order(), "the key has signed one order only");
        assert_eq!(envelope.payload(), order().to_bytes());
        assert!(verified.raw()[..] == *bytes);
        assert_eq!(verified.envelope_digest(), envelope.digest());
        assert_eq!(verified.signers(), std::slice::from_ref(&*KEY_PUBLIC));
    }
    if let Ok(joined) = join_signatures::<Order>(&[&envelope, &envelope], &either) {
        assert_eq!(joined.payload(), envelope.payload());
        assert!(joined.signatures().len() <= 2, "one for each key that signed, and no others");
    }
    Verdict::Taken
}
