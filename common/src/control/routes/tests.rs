//! A small API, its document, and answers held against it.

use std::thread;

use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::control::server::{Patience, serve};
use crate::control::{Answer, Asked, Body, ControlSocket, Part};
use crate::testing::api::{Document, Probe, Seen, ask};

/// A drink.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Drink {
    /// What it is called.
    name: String,
    #[serde(default)]
    size: Option<u8>,
}

async fn list(State(names): State<Vec<String>>, Asked(wanted): Asked<Drink>) -> Answer<Vec<Drink>> {
    let names = names.into_iter().filter(|name| *name == wanted.name);
    let drinks = names.map(|name| Drink { name, size: None });
    Answer::success("drinks", drinks.collect())
}

async fn pour(Part(name): Part, Body(drink): Body<Drink>) -> Answer<Drink> {
    if name == drink.name {
        return Answer::warning("it is hot", drink);
    }
    Answer::failed(StatusCode::CONFLICT, "that is another drink")
}

async fn spill(Part(_): Part) -> Answer {
    Answer::success("gone", ())
}

fn routes() -> Routes {
    let routes = Routes::new()
        .get("/drinks", "All drinks", list)
        .post("/drinks/{name}", "Pour one", pour)
        .delete("/drinks/{name}", "Spill one", spill);
    routes.with_state(vec!["tea".to_owned()])
}

/// A server on a thread of its own, which ends with the test process.
fn start() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let socket = ControlSocket::bind(&path).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let routes = routes().router("bar", "1.0");
        let serve = serve(socket.listener().unwrap(), routes, Patience::default());
        runtime.block_on(serve).unwrap();
    });
    (dir, path)
}

#[test]
fn a_document_says_what_goes_in_and_comes_out() {
    let document = routes().table().document("bar", "1.0");
    let list = &document["paths"]["/drinks"]["get"];
    assert_eq!(list["summary"], "All drinks");
    let parameter = json!({"name": "name", "in": "query", "required": true,
        "schema": {"type": "string", "description": "What it is called."}});
    assert_eq!(list["parameters"][0], parameter);
    assert_eq!(list["parameters"][1]["required"], false);
    let pour = &document["paths"]["/drinks/{name}"]["post"];
    assert_eq!(pour["parameters"][0]["in"], "path");
    let taken = &pour["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(
        taken["required"],
        json!(["name"]),
        "what has a default may be left out"
    );
    let given = &pour["responses"]["200"]["content"]["application/json"]["schema"];
    assert_eq!(given["required"], json!(["status", "description", "data"]));
    let drink = &document["components"]["schemas"]["Drink"];
    assert_eq!(
        drink["required"],
        json!(["name", "size"]),
        "and is sent all the same"
    );
    assert_eq!(drink["description"], "A drink.");
}

#[test]
fn the_document_is_served_and_names_itself() {
    let (_dir, socket) = start();
    let document = Document::fetch(&socket).unwrap();
    let mut expected = vec![
        ("get".to_owned(), "/drinks".to_owned()),
        ("delete".to_owned(), "/drinks/{name}".to_owned()),
        ("post".to_owned(), "/drinks/{name}".to_owned()),
        ("get".to_owned(), DOCUMENT.to_owned()),
    ];
    let operations = document.operations();
    expected.sort();
    assert_eq!(operations, expected);
}

#[test]
fn answers_of_every_sort_are_what_the_document_says() {
    let (_dir, socket) = start();
    let document = Document::fetch(&socket).unwrap();
    let tea = json!({"name": "tea"});
    for (method, target, path, body, code) in [
        ("get", "/drinks?name=tea", "/drinks", None, 200),
        ("get", "/drinks?size=x", "/drinks", None, 400),
        ("post", "/drinks/tea", "/drinks/{name}", Some(&tea), 200),
        ("post", "/drinks/beer", "/drinks/{name}", Some(&tea), 409),
        ("post", "/drinks/beer", "/drinks/{name}", None, 400),
        ("post", "/drinks/%ff", "/drinks/{name}", Some(&tea), 400),
        ("delete", "/drinks/tea", "/drinks/{name}", None, 200),
        ("get", DOCUMENT, DOCUMENT, None, 200),
    ] {
        let reply = ask(&socket, method, target, body).unwrap();
        assert_eq!(reply.code, code, "{target}: {}", reply.body);
        let verdict = document.gives(method, path, &reply);
        assert_eq!(verdict, Ok(()), "{target}: {}", reply.body);
    }
}

#[test]
fn an_answer_that_differs_from_the_document_is_noticed() {
    let (_dir, socket) = start();
    let document = Document::fetch(&socket).unwrap();
    let tea = json!({"name": "tea"});
    let good = ask(&socket, "post", "/drinks/tea", Some(&tea)).unwrap();
    for (from, to) in [
        ("\"name\"", "\"nom\""),
        ("\"warning\"", "\"odd\""),
        ("\"warning\"", "\"failed\""),
        ("it is hot", ""),
        ("null", "\"big\""),
    ] {
        let mut bad = good.clone();
        bad.body = bad.body.replace(from, to);
        assert_ne!(bad.body, good.body);
        let verdict = document.gives("post", "/drinks/{name}", &bad);
        assert!(verdict.is_err(), "{}", bad.body);
    }
    let taken = |body| document.takes("post", "/drinks/{name}", &body);
    assert_eq!(taken(tea), Ok(()));
    assert!(taken(json!({"name": "tea", "sugar": 1})).is_err());
}

/// Asks for everything in `document`.
fn probed(socket: &std::path::Path, document: &Document) -> Result<Seen, String> {
    let probe = Probe {
        socket,
        document,
        parts: &["tea", "beer"],
        words: &["tea"],
        cases: 300,
    };
    probe.run()
}

#[test]
fn whatever_is_asked_is_answered_as_the_document_says() {
    let (_dir, socket) = start();
    let document = Document::fetch(&socket).unwrap();
    let seen = probed(&socket, &document).unwrap();
    let pour = &seen[&("post".to_owned(), "/drinks/{name}".to_owned())];
    for code in [200, 400, 409] {
        assert!(pour.contains_key(&code), "{pour:?}");
    }
}

#[test]
fn a_document_that_differs_from_the_routes_is_noticed() {
    let (_dir, socket) = start();
    let document = Document::fetch(&socket).unwrap();
    let paths = &document.value()["paths"];
    let (list, pour) = (&paths["/drinks"]["get"], &paths["/drinks/{name}"]["post"]);
    let order = "/paths/~1drinks~1{name}/post/requestBody/content/application~1json/schema";
    let drink = "/components/schemas/Drink";
    let properties = format!("{drink}/properties");
    for (place, key, value, why) in [
        // Operations that there are no routes for, and a route that is not described.
        ("/paths", "/drunk", json!({"get": list}), "404"),
        ("/paths/~1drinks", "put", list.clone(), "405"),
        (
            "/paths",
            "/drinks/{name}",
            json!({"post": pour}),
            "which is not in it",
        ),
        // What goes in, or comes out, is something else.
        (order, "required", json!(["name", "size"]), "200, not 4xx"),
        (
            &properties,
            "name",
            json!({"type": "integer"}),
            "is not of type \"integer\"",
        ),
        (
            drink,
            "required",
            json!(["sugar"]),
            "\"sugar\" is a required property",
        ),
    ] {
        let mut changed = document.value().clone();
        changed.pointer_mut(place).unwrap()[key] = value;
        let wrong = probed(&socket, &Document::new(changed));
        let wrong = wrong.expect_err(&format!("{place} {key} was not noticed"));
        assert!(wrong.contains(why), "{place} {key}: {wrong}");
    }
}
