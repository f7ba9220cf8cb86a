use std::io::Cursor;

use super::*;

fn read(options: &ReadOptions, text: &[u8]) -> Result<Vec<(String, String)>> {
    let mut rows = Vec::new();
    let mut reader = reader(options, Box::new(Cursor::new(text.to_vec())), "input")?;
    let mut row = Row::default();
    while reader.read(&mut row)? {
        rows.push((
            String::from_utf8(row.key.clone()).unwrap(),
            String::from_utf8(row.value.clone()).unwrap(),
        ));
    }
    Ok(rows)
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(Failure::Message(crate::failure::Status::Input, message)) => message,
        other => panic!("not a complaint about the input: {other:?}"),
    }
}

fn pairs(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn write(format: Format, codecs: (Codec, Codec), rows: &[(&[u8], &[u8])]) -> Result<String> {
    let mut out = Vec::new();
    let mut writer = writer(WriteOptions::new(format), &mut out, codecs);
    for (key, value) in rows {
        writer.write(key, value)?;
    }
    writer.finish()?;
    drop(writer);
    Ok(String::from_utf8(out).unwrap())
}

fn text() -> (Codec, Codec) {
    (Codec::Str, Codec::Str)
}

/// Loading gives rows; dumping them must give the file again.
fn round_trip(options: &ReadOptions, file: &str) {
    let rows = read(options, file.as_bytes()).unwrap();
    let rows: Vec<(&[u8], &[u8])> = rows.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
    assert_eq!(write(options.format, text(), &rows).unwrap(), file);
}

#[test]
fn a_csv_row_becomes_an_object_keyed_by_its_first_column() {
    let rows = read(&ReadOptions::new(Format::Csv), b"name,age\nalice,7\n\"b,\"\"ob\",\n").unwrap();
    assert_eq!(
        rows,
        pairs(&[("alice", r#"{"name":"alice","age":"7"}"#), (r#"b,"ob"#, r#"{"name":"b,\"ob","age":""}"#)])
    );
}

#[test]
fn the_key_column_goes_by_name_or_else_by_position() {
    let file = b"a,2,b\n1,x,3\n";
    for (chosen, key) in [("a", "1"), ("2", "x"), ("b", "3"), ("3", "3")] {
        let options = ReadOptions { key: KeyColumn::Chosen(chosen.into()), ..ReadOptions::new(Format::Csv) };
        assert_eq!(read(&options, file).unwrap()[0].0, key, "{chosen}");
    }
    for chosen in ["c", "0", "4"] {
        let options = ReadOptions { key: KeyColumn::Chosen(chosen.into()), ..ReadOptions::new(Format::Csv) };
        assert_eq!(message(read(&options, file)), format!("input, line 1: there is no column {chosen:?}"));
    }
}

#[test]
fn without_a_header_a_row_becomes_an_array() {
    let options = ReadOptions {
        header: Header::Absent,
        delimiter: Some(b';'),
        key: KeyColumn::Chosen("2".into()),
        ..ReadOptions::new(Format::Csv)
    };
    assert_eq!(read(&options, b"0041;A;\n").unwrap(), pairs(&[("A", r#"["0041","A",""]"#)]));
}

#[test]
fn plain_rows_are_key_and_value() {
    let options = ReadOptions { shape: Shape::Plain, ..ReadOptions::new(Format::Tsv) };
    assert_eq!(read(&options, b"key\tvalue\na\t1\n").unwrap(), pairs(&[("a", "1")]));
    assert_eq!(
        message(read(&options, b"k\tv\tw\na\t1\t2\n")),
        "input, line 2: --plain wants two columns; here are 3"
    );
}

#[test]
fn complaints_name_the_line() {
    let csv = ReadOptions::new(Format::Csv);
    assert_eq!(message(read(&csv, b"a,b\n1,2\n\n1,2,3\n")), "input, line 4: 3 fields where the file has 2");
    assert_eq!(
        message(read(&csv, b"a,b\n\"two\nlines\",2\n1,2,3")),
        "input, line 4: 3 fields where the file has 2"
    );
    assert_eq!(message(read(&csv, b"a,b\n1,\xff\n")), "input, line 2: \"\\xff\" is not UTF-8");
    assert_eq!(message(read(&csv, b"a,a\n")), "input, line 1: the header has two columns \"a\"");
    let jsonl = ReadOptions::new(Format::Jsonl);
    assert_eq!(
        message(read(&jsonl, b"{\"a\":1}\n\n{\"a\"\n")),
        "input, line 3: not a JSON object or array: EOF while parsing an object"
    );
    assert!(message(read(&jsonl, b"7\n")).starts_with("input, line 1: not a JSON object or array"));
    assert_eq!(
        message(read(&jsonl, b"{\"a\":null}\n")),
        "input, line 1: the key is null; it must be text, a number or a boolean"
    );
    assert_eq!(message(read(&jsonl, b"{}\n")), "input, line 1: there is no field for the key");
    let raw = ReadOptions::new(Format::Raw);
    assert_eq!(message(read(&raw, b"a\tb\nab\n")), "input, line 2: there is no tab between key and value");
    assert_eq!(
        message(read(&raw, b"a\\q\tb\n")),
        "input, line 1: \\q is no escape (\\\\ \\n \\r \\t \\xNN are)"
    );
}

#[test]
fn json_lines_keep_their_writing_and_key_by_field() {
    let options = ReadOptions { key: KeyColumn::Chosen("id".into()), ..ReadOptions::new(Format::Jsonl) };
    let file = "{\"x\": 1.50, \"id\":\"\\u0061\"}\n {\"id\":1e2}\r\n{\"id\":true, \"x\":[1, 2]}";
    assert_eq!(
        read(&options, file.as_bytes()).unwrap(),
        pairs(&[
            ("a", "{\"x\": 1.50, \"id\":\"\\u0061\"}"),
            ("1e2", "{\"id\":1e2}"),
            ("true", "{\"id\":true, \"x\":[1, 2]}")
        ])
    );
    let options = ReadOptions { key: KeyColumn::Chosen("2".into()), ..ReadOptions::new(Format::Jsonl) };
    assert_eq!(read(&options, b"\xef\xbb\xbf[1,\"k\"]\n").unwrap(), pairs(&[("k", "[1,\"k\"]")]));
}

#[test]
fn what_was_loaded_is_dumped_as_it_was() {
    round_trip(&ReadOptions::new(Format::Csv), "name,age,note\nalice,7,\"a,b\"\nbob,,\"two\nlines\"\n");
    round_trip(&ReadOptions::new(Format::Tsv), "name\tage\na b\t\"x\ty\"\n");
    round_trip(
        &ReadOptions { header: Header::Absent, ..ReadOptions::new(Format::Csv) },
        "0041,LATIN CAPITAL LETTER A,Lu\n",
    );
    round_trip(&ReadOptions::new(Format::Jsonl), "{\"id\": 1, \"tags\": [1.0]}\n[2, null]\n");
    round_trip(&ReadOptions::new(Format::Raw), "a\\tb\tc\\nd\n\\\\\t\n");
}

#[test]
fn raw_is_exact_for_any_bytes() {
    let (key, value): (Vec<u8>, Vec<u8>) = ((0..=255).collect(), (0..=255).rev().collect());
    let file = write(Format::Raw, text(), &[(&key, &value)]).unwrap();
    assert_eq!(file.lines().count(), 1);
    let mut reader =
        reader(&ReadOptions::new(Format::Raw), Box::new(Cursor::new(file.into_bytes())), "input").unwrap();
    let mut row = Row::default();
    assert!(reader.read(&mut row).unwrap());
    assert_eq!((row.key, row.value), (key, value));
}

#[test]
fn csv_of_other_rows_is_key_and_value() {
    let accounts = (Codec::of("str"), Codec::of("u64"));
    assert_eq!(
        write(Format::Csv, accounts, &[(b"alice", &7_u64.to_be_bytes()), (b"b,ob", &8_u64.to_be_bytes())])
            .unwrap(),
        "key,value\nalice,7\n\"b,ob\",8\n"
    );
    let bytes = (Codec::Bytes, Codec::Bytes);
    assert!(message(write(Format::Csv, bytes, &[(b"\xff", b"")])).contains("--format raw"));
}

#[test]
fn csv_refuses_rows_of_mixed_columns_and_json_lines_takes_them() {
    let rows: &[(&[u8], &[u8])] =
        &[(b"a", br#"{"x":"a"}"#), (b"b", br#"{"y":"b"}"#), (b"c", b"\xff"), (b"1", b"[\n1]")];
    assert!(message(write(Format::Csv, text(), rows)).starts_with("row b has other columns"));
    assert_eq!(
        write(Format::Jsonl, text(), rows).unwrap(),
        "{\"x\":\"a\"}\n{\"y\":\"b\"}\n{\"key\":\"c\",\"value_hex\":\"ff\"}\n{\"key\":\"1\",\"value\":\"[\\n1]\"}\n"
    );
}

#[test]
fn a_document_without_its_key_is_written_with_it() {
    let row: &[(&[u8], &[u8])] = &[(b"alice", br#"{"age":36}"#)];
    assert_eq!(
        write(Format::Jsonl, text(), row).unwrap(),
        "{\"key\":\"alice\",\"value\":\"{\\\"age\\\":36}\"}\n"
    );
    assert_eq!(write(Format::Csv, text(), row).unwrap(), "key,value\nalice,\"{\"\"age\"\":36}\"\n");
    let rows: &[(&[u8], &[u8])] = &[(b"a", br#"{"id":"a"}"#), (b"b", br#"{"id":"a"}"#)];
    assert!(message(write(Format::Csv, text(), rows)).starts_with("row b has other columns"));
}

#[test]
fn plain_json_lines_give_any_row_back() {
    let values: [&[u8]; 9] = [
        b"1",
        b"",
        b"\xff\n",
        br#"{"id":"k"}"#,
        br#" {"id":"k"}"#,
        b"{\"id\":\n\"k\"}",
        br#"{"id":"other"}"#,
        br#"{"key":"k","value":"v"}"#,
        br#"["k",null]"#,
    ];
    let options = ReadOptions { shape: Shape::Plain, ..ReadOptions::new(Format::Jsonl) };
    for key in [&b"k"[..], b"\xff\x00", b"", b"[1]"] {
        for value in values {
            let file = write(Format::Jsonl, text(), &[(key, value)]).unwrap();
            let mut reader =
                reader(&options, Box::new(Cursor::new(file.clone().into_bytes())), "input").unwrap();
            let mut row = Row::default();
            assert!(reader.read(&mut row).unwrap());
            assert_eq!((row.key.as_slice(), row.value.as_slice()), (key, value), "{file}");
        }
    }
    assert_eq!(
        message(read(&options, b"{\"key_hex\":\"0\",\"value\":1}")),
        "input, line 1: the key: an odd number of hexadecimal digits"
    );
}

#[test]
fn a_quote_that_is_never_closed_is_no_end() {
    let csv = ReadOptions::new(Format::Csv);
    let never = |line| format!("input, line {line}: the quote that begins here is never closed");
    assert_eq!(message(read(&csv, b"id,note\n1,\"oops\n2,b\n3,c\n")), never(2));
    assert_eq!(message(read(&csv, b"id,note\r\n1,\"a\r\nb\"\r\n\r\n\"4\n4\",\"oops")), never(6));
    assert_eq!(message(read(&csv, b"id,note\n1,\"a\"\"")), never(2));
    assert_eq!(message(read(&csv, b"\"")), never(1));
    for file in [&b"id\n1\n\xff\xfe\xff\n2\n"[..], b"id\n\xff\xfe\xff", b"id\n\"\n\xff\xfe\xff\""] {
        assert!(message(read(&csv, file)).ends_with("not UTF-8"), "{file:?}");
    }
    for file in [&b"id,note\n1,\"a\""[..], b"id,note\n1,\"a\"\n\n", b"id,note\n1,\"a\"\r\n"] {
        assert_eq!(read(&csv, file).unwrap().len(), 1, "{file:?}");
    }
    let literal = ReadOptions { quoting: Quoting::Literal, ..csv };
    assert_eq!(read(&literal, b"id,note\n1,\"oops\n2,b\n").unwrap().len(), 2);
}

#[test]
fn a_file_name_announces_its_format() {
    for (name, format) in [
        ("a.csv", Some(Format::Csv)),
        ("a.b.TSV", Some(Format::Tsv)),
        ("a.ndjson", Some(Format::Jsonl)),
        ("a.raw", Some(Format::Raw)),
        ("a.txt", None),
        ("csv", None),
    ] {
        assert_eq!(Format::of_file(Path::new(name)), format, "{name}");
    }
}
