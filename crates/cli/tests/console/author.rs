//! The author's day: a bundle is begun, checked, tested, laid out and told about, all without a gateway.

use std::fs;

use super::person::Person;

#[tokio::test]
async fn a_bundle_that_was_begun_passes_without_a_word() {
    let person = Person::new();
    let dir = person.path("our policy");
    let dir = dir.to_str().expect("utf-8");
    let choices = [
        "--group",
        "ops",
        "--host",
        "db-1",
        "--host",
        "db-2",
        "--user",
        "deploy",
        "--contact",
        "ask@example.org",
    ];
    let ran = person.run(&[&["policy", "init", dir], choices.as_slice()].concat()).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("sallyport policy push"), "{ran:?}");
    assert!(person.path("our policy/.github/workflows/policy.yml").is_file());

    let ran = person.run(&["policy", "check", "--deny-warnings", dir]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("No fault:") && ran.stdout.contains("no-shred (forbid)"), "{ran:?}");
    let quiet = person.run(&["policy", "check", "--quiet", dir]).await;
    assert!(quiet.code == 0 && !quiet.stdout.contains("no-shred"), "{quiet:?}");

    let junit = person.path("policy.xml");
    let junit = junit.to_str().expect("utf-8");
    let ran = person.run(&["policy", "test", "--deny-untested", "--coverage", "--junit", junit, dir]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let all = ran.stdout.lines().find(|line| line.starts_with("Conditions seen")).expect("a sum");
    let numbers: Vec<&str> =
        all.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty()).collect();
    assert_eq!(numbers[0], numbers[1], "every condition is seen both ways: {ran:?}");
    let xml = fs::read_to_string(junit).expect("written");
    assert!(xml.contains("failures=\"0\"") && xml.contains("classname=\"tests/first.toml\""), "{xml}");

    let ran = person.run(&["policy", "fmt", "--check", dir]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let page = person.run(&["policy", "docs", dir]).await;
    assert_eq!(page.code, 0, "{page:?}");
    assert!(
        page.stdout.contains("# Policy `our-policy`")
            && page.stdout.contains("- Whom to ask: ask@example.org"),
        "{page:?}"
    );

    let again = person.run(&["policy", "init", dir]).await;
    assert_eq!(again.code, 2, "nothing is overwritten: {again:?}");
    let odd = person.path("odd");
    let odd = odd.to_str().expect("utf-8");
    let ran = person.run(&["policy", "init", odd, "--group", "a\"b"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    let ran = person.run(&["policy", "init", odd, "--pack", "nonesuch"]).await;
    assert!(ran.code == 2 && ran.stderr.contains("the packs are") && ran.stderr.contains("base"), "{ran:?}");
}

/// What the starting bundle says about two people is true once its comment signs are gone.
#[tokio::test]
async fn the_rule_for_two_people_holds_once_it_is_taken_in() {
    let person = Person::new();
    let dir = person.path("two");
    let at = dir.to_str().expect("utf-8");
    assert_eq!(person.run(&["policy", "init", at]).await.code, 0);
    let test = ["policy", "test", "--deny-untested", at];
    assert_eq!(person.run(&test).await.code, 0, "the control: as it was written");
    // From the line that begins so, as far as comments go.
    let take_in = |file: &str, begin: &str, sign: &str| {
        let path = dir.join(file);
        let text = fs::read_to_string(&path).expect("read");
        let (before, rest) = text.split_at(text.find(begin).unwrap_or_else(|| panic!("{file}: no {begin}")));
        let mut open = true;
        let lines = rest.lines().map(|line| {
            open &= line.starts_with(sign);
            if open { line.trim_start_matches(sign).trim_start() } else { line }
        });
        let after: Vec<&str> = lines.collect();
        fs::write(path, format!("{before}{}\n", after.join("\n"))).expect("written");
    };
    take_in("tests/first.toml", "# [[case]]", "#");
    let ran = person.run(&test).await;
    assert!(
        ran.code == 1 && ran.stdout.contains("expected deny, got allow by"),
        "its case without the rule: {ran:?}"
    );
    take_in("gateway.cedar", "// @id(\"takes-two\")", "//");
    let ran = person.run(&test).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = person.run(&["policy", "check", "--deny-warnings", at]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = person.run(&["policy", "fmt", at]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[tokio::test]
async fn every_pack_can_be_begun_with() {
    let person = Person::new();
    for (pack, about) in sallyport_policy::packs() {
        assert!(!about.is_empty(), "{pack}: its manifest begins with a comment that says what it is for");
        let dir = person.path(pack);
        let dir = dir.to_str().expect("utf-8");
        assert_eq!(person.run(&["policy", "init", dir, "--pack", pack]).await.code, 0, "{pack}");
        let bundle = sallyport_policy::Bundle::read_dir(dir.as_ref()).expect("a bundle");
        let policy =
            sallyport_policy::Policy::load(&bundle).unwrap_or_else(|faults| panic!("{pack}: {faults}"));
        assert_eq!(policy.lint(&bundle).errors(), 0, "{pack}");
    }
}

#[tokio::test]
async fn warnings_fail_when_they_should_and_are_told_in_json() {
    let person = Person::new();
    let dir = person.path("wide");
    fs::create_dir_all(dir.join("tests")).expect("made");
    let manifest = "name = \"wide\"\nschema = 2\n";
    fs::write(dir.join("bundle.toml"), manifest).expect("written");
    fs::write(dir.join("rules.cedar"), "@id(\"all\")\npermit (principal, action, resource);\n")
        .expect("written");
    let path = dir.to_str().expect("utf-8");
    let ran = person.run(&["policy", "check", path]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout.contains("rules.cedar:2:1: warning [wide-permit]: rule `all` permits every action"),
        "{ran:?}"
    );
    assert_eq!(person.run(&["policy", "check", "--deny-warnings", path]).await.code, 1);
    let ran = person.run(&["--json", "policy", "check", "--deny-warnings", path]).await;
    let document = &ran.documents()[0];
    assert_eq!(
        (ran.code, &document["ok"], &document["warnings"], &document["errors"]),
        (1, &false.into(), &1.into(), &0.into())
    );
    let finding = &document["findings"][0];
    for (key, value) in
        [("severity", "warning"), ("code", "wide-permit"), ("rule", "all"), ("file", "rules.cedar")]
    {
        assert_eq!(finding[key], value, "{finding}");
    }
    assert_eq!((&finding["line"], &finding["column"], &finding["length"]), (&2.into(), &1.into(), &6.into()));
    assert!(finding["excerpt"].is_string() && finding["message"].is_string() && finding["help"].is_string());
    assert!(document["placement"][0]["places"][0]["cost"]["entries"].is_number(), "{document}");

    // A rule without a case, and one that can never apply.
    let ran = person.run(&["policy", "test", path]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(person.run(&["policy", "test", "--deny-untested", path]).await.code, 1);
    let rule = "@id(\"p\")\npermit (principal, action == Action::\"connect\", resource)\nwhen { context.port == 70000 };\n";
    fs::write(dir.join("rules.cedar"), rule).expect("written");
    let ran = person.run(&["policy", "check", path]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("rules.cedar:3:24: error [never-applies]"), "{ran:?}");

    fs::write(dir.join("bundle.toml"), "name = \"wi de\"\nschema = 7\n").expect("written");
    let ran = person.run(&["--json", "policy", "check", path]).await;
    let document = &ran.documents()[0];
    assert_eq!((ran.code, &document["errors"]), (1, &2.into()), "{document}");
    assert_eq!(document["findings"][0]["code"], "fault");
}

#[tokio::test]
async fn layout_is_shown_or_done_and_never_loses_anything() {
    let person = Person::new();
    let dir = person.path("loose");
    fs::create_dir_all(&dir).expect("made");
    let file = dir.join("a.cedar");
    let loose = "// why\n@id(\"a\") permit(principal,action,resource);\n";
    fs::write(&file, loose).expect("written");
    let path = dir.to_str().expect("utf-8");
    let ran = person.run(&["policy", "fmt", "--check", path]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stdout.contains("  -@id(\"a\") permit(")
            && ran.stdout.contains("  +permit (principal, action, resource);"),
        "{ran:?}"
    );
    assert_eq!(fs::read_to_string(&file).expect("there"), loose, "--check changes nothing");
    assert_eq!(person.run(&["policy", "fmt", path]).await.code, 0);
    let done = fs::read_to_string(&file).expect("there");
    assert!(done.starts_with("// why\n@id(\"a\")\npermit (principal, action, resource);"), "{done}");
    assert_eq!(person.run(&["policy", "fmt", "--check", path]).await.code, 0);
    fs::write(&file, "permit (principal,").expect("written");
    let ran = person.run(&["policy", "fmt", path]).await;
    assert!(ran.code == 1 && ran.stdout.contains("a.cedar:1:"), "{ran:?}");
    assert_eq!(fs::read_to_string(&file).expect("there"), "permit (principal,");
}
