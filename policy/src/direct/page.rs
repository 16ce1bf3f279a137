//! A page of a list, as bytes: where it stands in the list is known before its objects are read.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Error;

use super::object::{Object, Watched};

/// A page.
pub(super) struct Page {
    bytes: Vec<u8>,
    place: Place,
}

/// Where a page stands in its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The next one is asked for with this token.
    More(String),
    /// It is the last one; what happens to the objects from this version on is for a watch to tell.
    Last(String),
    /// The server does not say.
    Nowhere,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

impl From<Metadata> for Place {
    fn from(metadata: Metadata) -> Self {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        match (some(metadata.r#continue), some(metadata.resource_version)) {
            (Some(token), _) => Self::More(token),
            (None, Some(version)) => Self::Last(version),
            (None, None) => Self::Nowhere,
        }
    }
}

impl Page {
    /// Takes the body of an answer.
    ///
    /// *Errors*: there is no list in it.
    ///
    /// *Cost*: that of what stands before the objects, which is where the API server says its place.
    pub(super) fn new(bytes: Vec<u8>) -> Result<Self, Error> {
        let mut found = None;
        let read = serde_json::Deserializer::from_slice(&bytes)
            .deserialize_map(Beginning { found: &mut found });
        let place = match (found, read) {
            (Some(metadata), _) => metadata.into(),
            (None, Ok(())) => Place::Nowhere,
            (None, Err(error)) => return Err(error),
        };
        Ok(Self { bytes, place })
    }

    /// Where it stands.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Reads the objects, in order.
    ///
    /// *Errors*: it is no list; the objects before the end of what could be read are taken.
    pub(super) fn read<T: Watched>(&self, mut take: impl FnMut(Object<T>)) -> Result<(), Error> {
        let mut taken = 0_usize;
        let read = self.items(|content: T| {
            taken += 1;
            take(content.into());
        });
        if read.is_ok() {
            return Ok(());
        }
        // Something is not what it should be. Whatever it is, it stops no other object: each is looked at
        // as text first.
        let mut seen = 0;
        self.items(|object: Object<T>| {
            seen += 1;
            if seen > taken {
                take(object);
            }
        })
    }

    fn items<'de, E: Deserialize<'de>>(&'de self, take: impl FnMut(E)) -> Result<(), Error> {
        let mut reader = serde_json::Deserializer::from_slice(&self.bytes);
        let items = Items {
            take,
            element: PhantomData,
        };
        reader.deserialize_map(Whole(items))?;
        reader.end()
    }
}

/// Reads no further than it must.
struct Beginning<'a> {
    found: &'a mut Option<Metadata>,
}

impl<'de> Visitor<'de> for Beginning<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Key>()? {
            if key == Key::Metadata {
                *self.found = Some(map.next_value()?);
                return Err(A::Error::custom("what follows is of no interest"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[derive(PartialEq, Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Key {
    Metadata,
    Items,
    #[serde(other)]
    Another,
}

/// A list, of which the objects are read.
struct Whole<E, F>(Items<E, F>);

impl<'de, E: Deserialize<'de>, F: FnMut(E)> Visitor<'de> for Whole<E, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Key>()? {
            if key == Key::Items {
                map.next_value_seed(&mut self.0)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The objects; each is taken as soon as it is read.
struct Items<E, F> {
    take: F,
    element: PhantomData<E>,
}

impl<'de, E: Deserialize<'de>, F: FnMut(E)> DeserializeSeed<'de> for &mut Items<E, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, E: Deserialize<'de>, F: FnMut(E)> Visitor<'de> for &mut Items<E, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects")
    }

    /// No objects, as Go writes it.
    fn visit_unit<R>(self) -> Result<(), R> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut objects: A) -> Result<(), A::Error> {
        while let Some(object) = objects.next_element()? {
            (self.take)(object);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use selvage_policy_core::api;

    use super::*;

    fn names(text: &str) -> Vec<(String, bool)> {
        let mut names = Vec::new();
        let page = Page::new(text.into()).unwrap();
        page.read(|object: Object<api::Pod>| {
            names.push((object.name().to_owned(), object.content.is_ok()));
        })
        .unwrap();
        names
    }

    fn object(name: &str, spec: &str) -> String {
        format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {spec}}}"#)
    }

    #[test]
    fn a_page_knows_its_place() {
        let cases = [
            (
                r#"{"resourceVersion": "7", "continue": "x"}"#,
                Place::More("x".to_owned()),
            ),
            (
                r#"{"resourceVersion": "7", "continue": ""}"#,
                Place::Last("7".to_owned()),
            ),
            (r#"{"resourceVersion": "7"}"#, Place::Last("7".to_owned())),
            (r#"{"resourceVersion": ""}"#, Place::Nowhere),
            ("{}", Place::Nowhere),
        ];
        for (metadata, place) in cases {
            for text in [
                format!(r#"{{"kind": "PodList", "metadata": {metadata}, "items": []}}"#),
                format!(
                    r#"{{"items": [{{"metadata": {{"name": "x"}}}}], "metadata": {metadata}}}"#
                ),
            ] {
                assert_eq!(
                    Page::new(text.clone().into()).unwrap().place,
                    place,
                    "{text}"
                );
            }
        }
        assert_eq!(Page::new(b"{}".to_vec()).unwrap().place, Place::Nowhere);
    }

    #[test]
    fn what_is_no_list_is_none() {
        for text in [
            "",
            "7",
            "[]",
            "<html>",
            r#"{"metadata": 7}"#,
            r#"{"kind": "Pod"#,
        ] {
            assert!(Page::new(text.into()).is_err(), "{text}");
        }
        for text in [
            r#"{"metadata": {}, "items": [{}"#,
            r#"{"metadata": {}, "items": 7}"#,
            r#"{"metadata": {}, "items": []} x"#,
        ] {
            let page = Page::new(text.into()).unwrap();
            assert!(page.read(|_: Object<api::Pod>| ()).is_err(), "{text}");
        }
    }

    #[test]
    fn no_objects_may_be_written_as_null() {
        assert_eq!(names(r#"{"metadata": {}, "items": null}"#), []);
        assert_eq!(names(r#"{"metadata": {}}"#), []);
    }

    #[test]
    fn an_object_that_cannot_be_read_stops_no_other_and_none_comes_twice() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for strange in ["7", "1e999", &deep, r#"{"hostNetwork": "no"}"#] {
            let items = [object("a", "{}"), object("b", strange), object("c", "{}")];
            let text = format!(r#"{{"metadata": {{}}, "items": [{}]}}"#, items.join(","));
            let want = [("a", true), ("b", false), ("c", true)];
            let want = want.map(|(name, readable)| (name.to_owned(), readable));
            assert_eq!(names(&text), want, "{strange}");
        }
    }
}
