//! A check as JUnit XML, which every build server shows.

use muster_model::Blocker;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::printable;
use crate::error::CliError;

/// The case that stands for reasons that belong to no host, so that no green report hides a shut gate.
const FLEET_CASE: &str = "(whole fleet)";

/// One suite with one test case for each host, and one for the fleet if something is wrong with it as a whole.
pub(crate) fn junit<'a>(
    suite: &str,
    class: &str,
    hosts: impl IntoIterator<Item = (&'a str, &'a [Blocker])>,
    fleet: &[Blocker],
) -> Result<String, CliError> {
    let mut cases = TestSuite::new(suite);
    for (host, blockers) in hosts {
        cases.add_test_case(case(host, class, blockers));
    }
    if !fleet.is_empty() {
        cases.add_test_case(case(FLEET_CASE, class, fleet));
    }
    let mut report = Report::new("muster check");
    report.add_test_suite(cases);
    report.to_string().map_err(|error| CliError::System {
        doing: "write the JUnit report",
        source: std::io::Error::other(error.to_string()),
    })
}

fn case(name: &str, class: &str, blockers: &[Blocker]) -> TestCase {
    let status = match blockers.first() {
        None => TestCaseStatus::success(),
        Some(first) => {
            let all: Vec<String> =
                blockers.iter().map(|blocker| printable(&blocker.to_string()).into_owned()).collect();
            let mut failure = TestCaseStatus::non_success(NonSuccessKind::Failure);
            failure.set_type(first.code.as_str());
            failure.set_message(all[0].as_str());
            failure.set_description(all.join("\n"));
            failure
        }
    };
    let mut case = TestCase::new(name, status);
    case.set_classname(class);
    case
}

#[cfg(test)]
mod tests {
    use muster_model::{Code, HostName};

    use super::*;

    #[test]
    fn there_is_one_case_for_each_host_and_failures_carry_the_reasons() {
        let host = HostName::new("host-2").unwrap();
        let blocker = Blocker {
            path: Some("bin/<x>".to_owned()),
            ..Blocker::host(Code::Mismatch, &host, "is missing")
        };
        let missing = [blocker];
        let hosts = [("host-1", &[][..]), ("host-2", &missing[..])];
        let fleet = [Blocker::fleet(Code::RosterChanged, "revision 3 instead of 2")];
        let xml = junit("demo 1.0.0", "demo", hosts, &fleet).unwrap();
        insta::assert_snapshot!(xml, @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuites name="muster check" tests="3" skipped="0" failures="2" errors="0">
            <testsuite name="demo 1.0.0" tests="3" skipped="0" errors="0" failures="2">
                <testcase name="host-1" classname="demo"/>
                <testcase name="host-2" classname="demo">
                    <failure message="mismatch at host-2, bin/&lt;x&gt;: is missing" type="mismatch">mismatch at host-2, bin/&lt;x&gt;: is missing</failure>
                </testcase>
                <testcase name="(whole fleet)" classname="demo">
                    <failure message="roster-changed: revision 3 instead of 2" type="roster-changed">roster-changed: revision 3 instead of 2</failure>
                </testcase>
            </testsuite>
        </testsuites>
        "#);
    }

    #[test]
    fn a_fleet_without_reasons_has_no_case_of_its_own() {
        let xml = junit("demo 1.0.0", "demo", [("host-1", &[][..])], &[]).unwrap();
        assert!(xml.contains(r#"tests="1" skipped="0" failures="0""#), "{xml}");
        assert!(!xml.contains(FLEET_CASE));
    }
}
