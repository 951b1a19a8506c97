// Package lab builds what the interop tests run in: a network of namespaces, our programs as processes,
// official nodes as values.
//
// The test process moves into a network namespace of its own before any test runs, so nothing in it, the
// official client least of all, can reach an outside network:
//
//	the lab: test process, official nodes, control, relay          one namespace per agent
//	lab0 10.213.0.1                           10.213.N.1 <- veth -> 10.213.N.2  tailrace daemon
//
// Agents reach the lab's addresses through their default route. The lab does not forward, so two agents
// have no path to each other but a relay. Nodes that are to meet behind routers are put on an [Internet],
// the official one in a process of its own:
//
//	the lab: 203.0.113.1 <- bridge -> router 203.0.113.N, 192.168.N.1 <- veth -> 192.168.N.2 node
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"tailscale.com/envknob"
)

// insideEnv marks the test process that already lives in the lab's namespace.
const insideEnv = "TAILRACE_INTEROP_INSIDE"

// serverAddr is where control and relays listen inside the lab.
var serverAddr = netip.MustParseAddr("10.213.0.1")

// Addr returns the address that servers of a test listen on: reachable from every agent's namespace, or
// loopback where the test process could not have a namespace of its own.
func Addr() netip.Addr {
	if os.Getenv(insideEnv) == "" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return serverAddr
}

// Main is the TestMain of packages that use the lab. As root it starts the tests again in a new network
// namespace and passes their exit code on; otherwise they run where they are, and those that need
// namespaces are skipped.
func Main(m *testing.M) {
	quietOfficialClient()
	if told := os.Getenv(nodeEnv); told != "" {
		fmt.Fprintf(os.Stderr, "interop: official node: %v\n", runNode(told))
		os.Exit(1)
	}
	if os.Getenv(insideEnv) != "" {
		if err := raiseLab(); err != nil {
			fmt.Fprintf(os.Stderr, "interop: setting up the lab's namespace: %v\n", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if namespacesMissing() != "" {
		os.Exit(m.Run())
	}
	os.Exit(rerunInside())
}

// rerunInside runs this test binary again in a network namespace of its own and returns its exit code.
func rerunInside() int {
	inside := exec.Command("/proc/self/exe", os.Args[1:]...)
	inside.Args[0] = os.Args[0]
	inside.Env = append(os.Environ(), insideEnv+"=1")
	inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, os.Stdout, os.Stderr
	inside.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	err := inside.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	default:
		fmt.Fprintf(os.Stderr, "interop: tests in a namespace of their own: %v\n", err)
		return 1
	}
}

// raiseLab gives the fresh namespace its loopback and the address that servers listen on. A veth pair with
// both ends here carries it: the official client wants an interface that is up and is not loopback.
func raiseLab() error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "lab0", "type", "veth", "peer", "name", "lab1"},
		{"addr", "add", serverAddr.String() + "/32", "dev", "lab0"},
		{"link", "set", "lab0", "up"},
		{"link", "set", "lab1", "up"},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return nil
}

// quietOfficialClient keeps the official client from uploading logs and from asking gateways for mappings.
func quietOfficialClient() {
	envknob.SetNoLogsNoSupport()
	envknob.Setenv("TS_DISABLE_PORTMAPPER", "true")
}

// ip runs iproute2's ip.
func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %v: %w: %s", args, err, out)
	}
	return nil
}
