use muster_trust::{KeyAlgorithm, SigningKey};

use super::*;

// The examples of the specification and of the implementation that it was taken from.
const TEXT: &str =
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const OTHER_KEY: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const LINE: &str = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
const OTHER_LINE: &str = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";

fn note(lines: &str) -> String {
    format!("{TEXT}\n{lines}")
}

#[test]
fn the_published_notes_verify_and_are_written_as_they_were() {
    let (peter, enoch) = (NoteKey::parse(KEY).unwrap(), NoteKey::parse(OTHER_KEY).unwrap());
    assert_eq!((peter.to_string().as_str(), peter.name()), (KEY, "PeterNeumann"));
    let both = note(&format!("{LINE}{OTHER_LINE}"));
    let parsed = SignedNote::parse(both.as_bytes()).unwrap();
    assert_eq!(parsed.text(), TEXT);
    assert_eq!(parsed.to_string(), both);
    parsed.verify(&peter).unwrap();
    parsed.verify(&enoch).unwrap();
    let one = SignedNote::parse(note(LINE).as_bytes()).unwrap();
    assert!(matches!(one.verify(&enoch), Err(NoteError::NotSigned { name }) if name == "EnochRoot"));
}

#[test]
fn a_changed_text_or_signature_does_not_hold() {
    let peter = NoteKey::parse(KEY).unwrap();
    for changed in [note(LINE).replace("answer", "solution"), note(LINE).replace("x08go/ZJ", "x08go/ZK")] {
        let parsed = SignedNote::parse(changed.as_bytes()).unwrap();
        assert!(matches!(parsed.verify(&peter), Err(NoteError::Signature { .. })), "{changed}");
    }
}

#[test]
fn what_is_signed_here_verifies_here_and_nowhere_else() {
    let signer = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
    let signed = SignedNote::sign(TEXT.to_owned(), "example.com/log", &signer).unwrap();
    let read = SignedNote::parse(signed.to_string().as_bytes()).unwrap();
    assert_eq!(read, signed);
    read.verify(&NoteKey::new("example.com/log", signer.public()).unwrap()).unwrap();
    assert!(read.verify(&NoteKey::new("example.com/lag", signer.public()).unwrap()).is_err());
    let p256 = SigningKey::generate(KeyAlgorithm::P256).unwrap();
    assert!(matches!(SignedNote::sign(TEXT.to_owned(), "a", &p256), Err(NoteError::Key { .. })));
}

#[test]
fn whatever_is_not_exactly_a_note_is_refused() {
    let many = LINE.repeat(SIGNATURES_MAX + 1);
    for (bytes, what) in [
        (String::new(), "nothing"),
        (TEXT.to_owned(), "no signature"),
        (note(""), "no line"),
        (note(LINE.trim_end()), "no last newline"),
        (note("— PeterNeumann \n"), "no bytes"),
        (note("— PeterNeumann x08goA==\n"), "an id alone"),
        (note(&LINE.replace('—', "-")), "a hyphen"),
        (note(&LINE.replace("AM=", "AM")), "no padding"),
        (note(&format!("{LINE}\n")), "an empty line"),
        (note(&many), "too many"),
        (note(LINE).replace("problem,", "problem,\r"), "a carriage return"),
        (format!("{}{}", "x".repeat(NOTE_BYTES_MAX), note(LINE)), "too long"),
    ] {
        assert!(SignedNote::parse(bytes.as_bytes()).is_err(), "{what}");
    }
    for key in ["", "a+b", "a b+c74f20a3+ARpc", &KEY.replace("c74f", "c74e"), &KEY.replace("+AR", "+AB")] {
        assert!(NoteKey::parse(key).is_err(), "{key}");
    }
}
