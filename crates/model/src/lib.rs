//! The words of Updraft as types that cannot hold a wrong value.
