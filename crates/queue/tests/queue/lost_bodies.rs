//! What a crash leaves in the folder of long bodies. In NATS a body without a call may be another
//! instance's upload under way, and is left alone until it is old.

use std::fs;

use crate::house::House;

#[tokio::test]
async fn bodies_that_no_record_names_are_swept_at_the_start() {
    let mut house = House::new().await;
    let bodies = house.path("blobs/bodies");
    fs::create_dir_all(&bodies).unwrap();
    fs::write(bodies.join("0123"), "of a crash").unwrap();
    fs::write(bodies.join(".new-0123"), "of a crash").unwrap();
    assert_eq!(house.bodies().await, 2);
    house.restart().await;
    assert_eq!(house.bodies().await, 0);
}
