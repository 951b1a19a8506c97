// Package interop proves Tailrace against the official client, used as the library it is published as.
//
// Official nodes (tsnet) join tailrace-control, official DERP clients use tailrace-relay, and the tailrace
// agent uses an official DERP server. Our programs run as processes, built by cargo beforehand; see package lab
// for where they are looked for and what a test needs to run rather than be skipped.
//
// Run by `cargo xtask test interop`, or here by `go test ./... -v -count=1`.
package interop
