//! Who makes way for whom.

use std::sync::Arc;
use std::time::Duration;

use super::{Connection, Connections, Limits, Receiving};

fn connections(connections: usize) -> Arc<Connections> {
    Connections::new(Limits { connections, unverified_bytes: 100, moment: Duration::ZERO })
}

/// A request that has brought so many bytes of its body.
fn bring(connection: &Arc<Connection>, bytes: usize) -> Receiving {
    connection.begin(true);
    let receiving = Receiving::start(connection);
    receiving.append(&vec![0; bytes]).expect("it brings bytes");
    receiving
}

#[test]
fn the_body_that_stands_still_the_longest_makes_way() {
    let connections = connections(10);
    let [first, second, third] = [0; 3].map(|_| Connection::open(&connections));
    let (still, moving) = (bring(&first, 40), bring(&second, 1));
    moving.append(&[]).expect("it is there");
    let vouched = bring(&third, 30);
    third.verified().expect("it is there");
    let last = bring(&Connection::open(&connections), 29);
    still.append(&[]).expect("there is room for all");
    drop(last);

    let (fourth, fifth) = (Connection::open(&connections), Connection::open(&connections));
    let _filling = bring(&fourth, 29);
    let _more = bring(&fifth, 1);
    assert!(moving.append(&[]).is_err(), "it was the second's turn");
    assert_eq!(still.finish().expect("it moved after that").len(), 40);
    assert_eq!(vouched.finish().expect("it is verified").len(), 30);
    assert_eq!(connections.table().held, 30, "of the fourth and the fifth");
}

#[tokio::test]
async fn a_connection_makes_way_unless_it_is_verified() {
    let connections = connections(3);
    let [verified, unverified, idle] = [0; 3].map(|_| Connection::open(&connections));
    verified.begin(true);
    verified.verified().expect("it is there");
    unverified.begin(true);
    connections.make_room().await;
    idle.cut().await;
    assert!(idle.verified().is_err(), "it is too late for that");

    let third = Connection::open(&connections);
    third.begin(true);
    connections.make_room().await;
    unverified.cut().await;
    third.verified().expect("it is there");
    let fourth = Connection::open(&connections);
    fourth.begin(true);
    fourth.verified().expect("it is there");
    assert!(!connections.cut_one(), "all are verified");
    tokio::join!(connections.make_room(), async {
        verified.answered();
        verified.flushed();
    });
    verified.cut().await;
}

#[tokio::test]
async fn a_caller_stays_longer_than_strangers_who_are_idle() {
    let connections = connections(3);
    let [known, first, second] = [0; 3].map(|_| Connection::open(&connections));
    known.begin(true);
    known.verified().expect("it is there");
    for connection in [&first, &second, &known] {
        connection.begin(true);
        connection.answered();
        connection.flushed();
    }
    for stranger in [first, second] {
        assert!(connections.cut_one());
        stranger.cut().await;
    }
    assert!(connections.cut_one());
    known.cut().await;
}

#[test]
fn whoever_has_just_come_may_speak_first() {
    let moment = Duration::from_hours(1);
    let connections = Connections::new(Limits { connections: 10, unverified_bytes: 100, moment });
    let callers = [0; 4].map(|_| Connection::open(&connections));
    for caller in &callers {
        caller.verified().expect("it is there");
    }
    let fresh = Connection::open(&connections);
    assert!(!connections.cut_one(), "it would be cut off before it can speak");
    let _more = Connection::open(&connections);
    assert!(connections.cut_one(), "there are enough of them");
    assert!(fresh.verified().is_err(), "it was the first to come");
}
