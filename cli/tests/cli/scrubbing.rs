//! `scrub`.

use super::support::Place;

#[test]
fn a_scrub_tells_bad_pages_and_heals_them_from_a_target() {
    let place = Place::new();
    let mut rows = vec!["key,value".to_owned()];
    rows.extend((0..2000).map(|row| format!("{row:05},{}", "x".repeat(60))));
    place.write("rows.csv", rows.join("\n"));
    place.hamal(&["load", "db", "rows.csv", "-t", "t"]).text();
    // Until the log no longer has what was loaded.
    for _ in 0..3 {
        place.hamal(&["put", "db", "-t", "t", "00007", "seven"]).text();
    }
    place.hamal(&["backup", "db", "vault"]).text();
    let sound = place.hamal(&["scrub", "db", "--json"]).json();
    assert_eq!((&sound["sound"], &sound["partitions"]), (&true.into(), &2.into()), "{sound}");
    assert!(sound["pages"].as_u64() > Some(20), "{sound}");

    let file = place.path("db/part/2.dat");
    let file = if file.exists() { file } else { place.path("db/part/1.dat") };
    let whole = std::fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    for page in [6, 9] {
        bytes[page * 8192 + 500] ^= 4;
    }
    std::fs::write(&file, &bytes).unwrap();
    let told = place.hamal(&["scrub", "db"]);
    assert_eq!(told.status(), Some(1));
    assert_eq!(told.stdout().matches("DAMAGED: part/").count(), 2, "{}", told.stdout());
    assert!(told.stdout().contains("could not be rebuilt"), "{}", told.stdout());
    place.hamal(&["scrub", "db", "--heal-from", "nowhere"]).failure(3);

    let healed = place.hamal(&["scrub", "db", "--heal-from", "vault"]).text();
    // Some of them when the database was opened, perhaps: those that the doublewrite area has a copy of.
    assert!(healed.matches("healed: part/").count() <= 2 && healed.ends_with("sound\n"), "{healed}");
    assert!(std::fs::read(&file).unwrap() == whole, "as it was");
    let again = place.hamal(&["scrub", "db", "--json"]).json();
    assert_eq!((&again["healed"], &again["damaged"]), (&serde_json::json!([]), &serde_json::json!([])));
    place.hamal(&["check", "db"]).text();
    assert_eq!(place.hamal(&["get", "db", "-t", "t", "00007"]).text(), "seven\n");
}
