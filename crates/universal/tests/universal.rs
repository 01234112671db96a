//! The directory watch and the store, on real files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::ObjectKey;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use universal::directory::{self, Change};
use universal::store::{Store, StoreError, Write};

async fn next(receiver: &mut Receiver<Vec<Change>>) -> Vec<(String, Option<String>)> {
    let batch = timeout(Duration::from_secs(5), receiver.recv()).await.expect("in time").expect("watching");
    let short = |file: &str| Path::new(file).file_name().unwrap().to_string_lossy().into_owned();
    batch.iter().map(|change| (short(&change.file), change.text.as_deref().map(str::to_owned))).collect()
}

fn text(name: &str, text: &str) -> (String, Option<String>) {
    (name.to_owned(), Some(text.to_owned()))
}

#[tokio::test]
async fn files_come_change_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir(root.join("deep")).unwrap();
    fs::write(root.join("b.yaml"), "b").unwrap();
    fs::write(root.join("deep/a.json"), "{}").unwrap();
    fs::write(root.join(".hidden.yaml"), "no").unwrap();
    fs::write(root.join("README.md"), "no").unwrap();
    let mut changes = directory::watch(&[root.to_owned()]).unwrap();
    assert_eq!(next(&mut changes).await, [text("b.yaml", "b"), text("a.json", "{}")]);

    fs::write(root.join("b.yaml"), "B").unwrap();
    assert_eq!(next(&mut changes).await, [text("b.yaml", "B")]);

    fs::write(root.join("new.tmp"), "moved").unwrap();
    fs::rename(root.join("new.tmp"), root.join("b.yaml")).unwrap();
    assert_eq!(next(&mut changes).await, [text("b.yaml", "moved")]);

    fs::remove_file(root.join("deep/a.json")).unwrap();
    assert_eq!(next(&mut changes).await, [("a.json".to_owned(), None)]);

    fs::create_dir(root.join("later")).unwrap();
    fs::write(root.join("later/c.yml"), "c").unwrap();
    assert_eq!(next(&mut changes).await, [text("c.yml", "c")]);
}

#[tokio::test]
async fn a_swapped_link_changes_all_files_behind_it_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for version in ["1", "2"] {
        let place = root.join(format!("..{version}"));
        fs::create_dir(&place).unwrap();
        fs::write(place.join("a.yaml"), format!("a{version}")).unwrap();
        fs::write(place.join("b.yaml"), format!("b{version}")).unwrap();
    }
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    symlink("..data/b.yaml", root.join("b.yaml")).unwrap();
    let mut changes = directory::watch(&[root.to_owned()]).unwrap();
    assert_eq!(next(&mut changes).await, [text("a.yaml", "a1"), text("b.yaml", "b1")]);

    symlink("..2", root.join("..new")).unwrap();
    fs::rename(root.join("..new"), root.join("..data")).unwrap();
    assert_eq!(next(&mut changes).await, [text("a.yaml", "a2"), text("b.yaml", "b2")]);
}

#[tokio::test]
async fn what_cannot_be_read_keeps_what_it_said() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("config");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), "a").unwrap();
    let mut changes = directory::watch(std::slice::from_ref(&root)).unwrap();
    assert_eq!(next(&mut changes).await, [text("a.yaml", "a")]);

    fs::write(root.join("a.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    fs::write(root.join("b.yaml"), "b").unwrap();
    assert_eq!(next(&mut changes).await, [text("b.yaml", "b")], "the broken file is no change");

    // The whole directory away for a moment is no deletion.
    fs::rename(&root, directory.path().join("away")).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    fs::rename(directory.path().join("away"), &root).unwrap();
    fs::write(root.join("c.yaml"), "c").unwrap();
    let mut seen = next(&mut changes).await;
    seen.retain(|(_, text)| text.is_none());
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn a_missing_directory_is_named() {
    let error = directory::watch(&["/nowhere/at/all".into()]).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

fn key(name: &str) -> ObjectKey {
    ObjectKey {
        group: "networking.istio.io".into(),
        kind: "VirtualService".into(),
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn put(name: &str, text: &str, expected: Option<u64>) -> Write {
    Write::Put { key: key(name), text: Arc::from(text), expected }
}

#[test]
fn revisions_survive_and_history_tells() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.redb");
    let store = Store::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(store.revision(), 0);
    let mut follower = store.watch();
    assert_eq!(store.commit(&[put("a", "1", None), put("b", "1", Some(0))], "ann").unwrap(), 1);
    assert!(follower.has_changed().unwrap());
    assert_eq!(*follower.borrow_and_update(), 1);
    assert_eq!(store.commit(&[put("a", "1", None)], "ann").unwrap(), 1, "nothing changed");
    assert!(!follower.has_changed().unwrap());
    let delete = Write::Delete { key: key("b"), expected: Some(1) };
    assert_eq!(store.commit(&[put("a", "2", Some(1)), delete], "bob").unwrap(), 2);
    drop(store);

    let store = Store::open(&path).unwrap();
    assert_eq!(store.revision(), 2);
    let objects = store.objects().unwrap();
    assert_eq!(objects.len(), 1);
    assert_eq!((objects[0].key.clone(), objects[0].revision, &*objects[0].text), (key("a"), 2, "2"));
    assert_eq!(store.object(&key("a")).unwrap().unwrap(), objects[0]);
    let history = store.history(10).unwrap();
    assert_eq!(history.iter().map(|r| (r.revision, r.by.as_str())).collect::<Vec<_>>(), [(2, "bob"), (1, "ann")]);
    assert_eq!(history[0].changes[1].before.as_deref(), Some("1"));
    assert_eq!(history[0].changes[1].after, None);
    assert_eq!(history[0].changes[1].key, "networking.istio.io/VirtualService/shop/b");
}

#[test]
fn a_conflict_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("mesh.redb")).unwrap();
    store.commit(&[put("a", "1", None)], "ann").unwrap();
    let error = store.commit(&[put("c", "new", None), put("a", "2", Some(7))], "bob").unwrap_err();
    assert!(matches!(&error, StoreError::Conflict { found: 1, .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "VirtualService shop/a is at revision 1, not at the expected one: somebody changed it"
    );
    assert!(matches!(store.commit(&[put("a", "2", Some(0))], "bob"), Err(StoreError::Conflict { found: 1, .. })));
    let missing = Write::Delete { key: key("z"), expected: None };
    assert!(matches!(store.commit(&[missing], "bob"), Err(StoreError::NotFound { .. })));
    let bad = Write::Put { key: key("a/b"), text: "x".into(), expected: None };
    assert!(matches!(store.commit(&[bad], "bob"), Err(StoreError::Refused { .. })));
    assert_eq!(store.objects().unwrap().len(), 1);
    assert_eq!(store.revision(), 1);
}

#[test]
fn one_program_at_a_time_and_no_other_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.redb");
    let store = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(error.to_string().contains("another program has it open"), "{error}");
    drop(store);
    let other = directory.path().join("notes.txt");
    fs::write(&other, "this is no store, and long enough to look like a file of some kind").unwrap();
    assert!(matches!(Store::open(&other), Err(StoreError::Open { .. })));
}
