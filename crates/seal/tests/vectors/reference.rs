//! A key that is public and must never be used, and values sealed for it.

use updraft_seal::{Certificate, PrivateKey};

/// The key in PEM.
pub(crate) const TEST_KEY: &str = include_str!("test.pem");

/// Strict, for `openfaas-fn/alexellis-api`.
pub(crate) const STRICT: &str = "\
    AQB6FOLw4+tRCtZjKWoxtOxt9ZQ1rBbYGb9Y7rDNBIsPx041etM6iKdEVFGGXQQFlTmRjzztnEeMz0vEPLIzOwzzkA\
    DuziHjPUzrYD5l5tMuSLAMgKWnvLx78x1v+Jp/HOS4c2mu6V6PD6VqTvkkOxbb2JyPx0nrwpHWf8srL7PrihB0Ekrk\
    A5lJczeubUdzOzWe28LdBmVoM9cpRtBYAfp2ffCeqrq9yv7lvGk+Egw0fj59fgelOv4IRMbssKuzYDv4YZuWweQGJE\
    RnkeOAenupX9On5OSu3PvRKLJ8sTKF3xfIL16ewWz7J5i5O+FmQqlN5rFZJTn7Qz907fCrIrDNsQ6xK/GYlDSHeaO5\
    bvVj3GuO4wij0JAiifygxg==";

/// For the namespace `openfaas-fn`.
pub(crate) const NAMESPACE: &str = "\
    AQCjcfP598XKaaAuNKaTsZATeTHHexrnWsuhe6FWBigxG8Nw6XLQCffXeRkxn1bM3B3uaXyWtZTlPWUqtHbTdWC2QN\
    SqbmqAr1JD4GhxrF0+pt4lfNzpYXhUZOo52Wotc28xrS5C77HbmXXtZbIKHk5q+VdInd7CV3mNA+dM791gZAVIX+8i\
    A/DNfQTFmPHDHiEcXBcgZ9m8x110pnKMC/3fMmHGu9vChFHZakFSn+PaGVygPmqjRmUH1NJeqkQVrsTVsdF+PGkceq\
    xNdu1Rvk5ZO+I8799Gp/cB1+2WzwGhFVvyloD+G1/2xFGfBo/buWKercc9Nh1IbmGhinXhkcpzFFgpIilx7r2qT4V1\
    nmO6isLMF75JXBLn2VlSOg==";

/// For everywhere.
pub(crate) const CLUSTER: &str = "\
    AQCektQiFMhBdZBKUvEYiNyO75Za3jX74KqWTli9sfdMnb3hAORZicukNF57azJFYtoxp+9tzsnt8R2RBKyZS0THPO\
    WiLxJK9jv1tIlfmgj6zVUerz4JB9VF9qE97hhaGZApxzrEKvwjDLheBwY8/QOy9DPJAoCPg1B7P02sOAJ/lgVOSaZp\
    gBfWyk47t0L94Hv9BbqKiei22BAgKO4EVb47nC/nuImxjg82FFl0pWF/SWyRPpQ4r5PIbaYVYwJO+MzSVfv15hLAO0\
    ThtycqFqlfEuBMyzmYTU4/Rod6K5z1H22tFvH4Nh+AKh7UR9YSsHgiUK7gkWpPhhPDgkz6fbFBgKzJzmI31ut4q6sm\
    UVK58BWjDs8391qh7/prYg==";

/// As [`STRICT`], of nothing.
pub(crate) const EMPTY: &str = "\
    AQBVAMRpD+e8Sov4MRzP+csBR+xlZS0QWJY7r2jOpk3dq8jvx0fihrIJaRA997rNVSue5EK/7ZpHuOMhlE1syVxgXj\
    YRnXoVhauL8nv6gDNID3vvE77NKgUGYg5C3EuAFA6h2AxlkiDbVviL4FNHqzZgqFus6Z+xRDopRGqSp0CwKz1rMz5D\
    MnE2rHvwEO1YBygNscAMN8Gl3427pGjdZSG1J+9iqhhvt2IYNlzovVNXvCgyqrZkMRTAw5Cln/SIVMMeCAkEuWT2sb\
    EF2seaQ+MnEYdtE45Oym5K5Ultjy30b5yxI1f8OYzVKKj4nEqO5egrqDUS6qku0eUHrr3R40uqRteE/fBt3BbLx84o\
    GM3Odg==";

pub(crate) fn test_key() -> PrivateKey {
    PrivateKey::from_pem(TEST_KEY.as_bytes()).unwrap()
}

pub(crate) fn test_certificate() -> Certificate {
    let lifetime = jiff::SignedDuration::from_hours(87_600);
    test_key().certify("", jiff::Timestamp::now(), lifetime).unwrap()
}
