//! Edits keep what they do not touch.

use serde_json::json;

use super::*;

const POLICY: &str = r#"{
	// Who is who.
	"Groups": {
		"group:ops": [
			"alice@example.com", // on call
			"bob@example.com",
		],
	},
	"hosts": {"web": "10.1.2.3", /* gone soon */ "db": "10.1.2.4"},
	/* nothing yet */
	"acls": [],
}
"#;

#[test]
fn an_element_is_appended_in_the_layout_of_the_list() {
    let text = append(
        POLICY,
        &["groups", "group:ops"],
        &json!("carol@example.com"),
    )
    .unwrap();
    let expected = POLICY.replace(
        "\t\t\t\"bob@example.com\",\n",
        "\t\t\t\"bob@example.com\",\n\t\t\t\"carol@example.com\",\n",
    );
    assert_eq!(text, expected);
}

#[test]
fn an_element_is_removed_and_its_neighbours_keep_their_comments() {
    let text = remove_element(POLICY, &["groups", "group:ops"], &json!("bob@example.com")).unwrap();
    assert_eq!(text, POLICY.replace("\t\t\t\"bob@example.com\",\n", ""));
}

#[test]
fn a_member_is_replaced_where_it_stands() {
    let text = set(POLICY, &["hosts", "web"], &json!("10.9.9.9")).unwrap();
    assert_eq!(text, POLICY.replace("10.1.2.3", "10.9.9.9"));
}

#[test]
fn a_member_is_removed() {
    let text = remove(POLICY, &["hosts", "web"]).unwrap();
    assert!(!text.contains("10.1.2.3"));
    assert!(text.contains(r#""db": "10.1.2.4""#));
    assert!(text.contains("// on call"));
}

#[test]
fn a_rule_is_appended_to_an_empty_list() {
    let rule = json!({"action": "accept", "src": ["group:ops"], "dst": ["*:*"]});
    let text = append(POLICY, &["acls"], &rule).unwrap();
    assert!(text.contains("/* nothing yet */"));
    assert_eq!(parsed(&text)["acls"][0], rule);
}

#[test]
fn sections_that_are_missing_are_created() {
    for text in ["{}", "{\n}", "{ // nothing\n}\n", POLICY] {
        let path = ["autoApprovers", "routes", "10.1.0.0/16"];
        let text = append(text, &path, &json!("tag:router")).unwrap();
        assert_eq!(
            parsed(&text)["autoApprovers"]["routes"]["10.1.0.0/16"],
            json!(["tag:router"])
        );
        let text = append(&text, &path, &json!("group:ops")).unwrap();
        let expected = json!(["tag:router", "group:ops"]);
        assert_eq!(
            parsed(&text)["autoApprovers"]["routes"]["10.1.0.0/16"],
            expected
        );
    }
}

#[test]
fn null_is_an_empty_object() {
    let text = set(r#"{"hosts": null}"#, &["hosts", "web"], &json!("10.1.2.3")).unwrap();
    assert_eq!(parsed(&text)["hosts"], json!({"web": "10.1.2.3"}));
}

#[test]
fn null_is_an_empty_list() {
    let text = append(r#"{"acls": null}"#, &["acls"], &json!("x")).unwrap();
    assert_eq!(parsed(&text)["acls"], json!(["x"]));
}

#[test]
fn names_of_sections_are_found_in_any_case_but_names_of_the_author_exactly() {
    let text = set(
        r#"{"Hosts": {"Web": "10.1.2.3"}}"#,
        &["hosts", "web"],
        &json!("10.4.4.4"),
    )
    .unwrap();
    assert_eq!(
        parsed(&text)["Hosts"],
        json!({"Web": "10.1.2.3", "web": "10.4.4.4"})
    );
}

#[test]
fn texts_are_escaped() {
    let odd = "a\"b\\c\n\u{1}é";
    let text = set("{}", &["hosts", odd], &json!(odd)).unwrap();
    assert_eq!(parsed(&text)["hosts"][odd], odd);
}

#[test]
fn what_is_not_there_is_named() {
    let error = remove(POLICY, &["hosts", "mail"]).unwrap_err();
    assert_eq!(error.to_string(), "the policy has no hosts.mail");
    let error = remove_element(POLICY, &["groups", "group:ops"], &json!("dave@example.com"));
    let expected = "the policy has no \"dave@example.com\" in groups.group:ops";
    assert_eq!(error.unwrap_err().to_string(), expected);
    let error = append(POLICY, &["hosts"], &json!("x")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "hosts is not a list: edit the policy by hand"
    );
    let error = set("[]", &["hosts", "x"], &json!("x")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the policy is not an object: edit the policy by hand"
    );
    assert!(matches!(
        set("{", &["hosts"], &json!({})),
        Err(EditError::Syntax(_))
    ));
}

fn parsed(text: &str) -> Value {
    CstRootNode::parse(text, &syntax::strict())
        .unwrap()
        .to_serde_value()
        .unwrap()
}
