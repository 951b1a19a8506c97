package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shownLog is how much of the end of a program's log a failed test prints, in bytes.
const shownLog = 16 << 10

// Process is one of our programs running in the background. It ends with the test, and a failed test shows
// the end of what it wrote.
type Process struct {
	name string
	log  string // path of its standard output and error
	cmd  *exec.Cmd
	done chan struct{} // closed when it has been waited for
}

// start runs a program in the background, in ns if that is not nil.
func start(t testing.TB, ns *Namespace, path string, args ...string) *Process {
	t.Helper()
	name := filepath.Base(path)
	log, err := os.CreateTemp(t.TempDir(), name+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()

	cmd := command(ns, path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	p := &Process{name: name, log: log.Name(), cmd: cmd, done: make(chan struct{})}
	go func() {
		// How it ended is in cmd.ProcessState; those who care look there.
		_ = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", name, tail(p.Log(), shownLog))
		}
	})
	return p
}

// command prepares a program to run in ns, or where the test runs if ns is nil.
func command(ns *Namespace, path string, args ...string) *exec.Cmd {
	if ns == nil {
		return exec.Command(path, args...)
	}
	return exec.Command("ip", append([]string{"netns", "exec", ns.name, path}, args...)...)
}

// run runs a program to its end and returns its standard output; the error carries its standard error.
func run(ns *Namespace, path string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := command(ns, path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s%s", filepath.Base(path), strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// Kill ends the program without a chance to tidy up, and waits until it is gone.
func (p *Process) Kill() {
	p.end(syscall.SIGKILL)
}

// Stop asks the program to end, as an init system would, and waits until it is gone.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	p.end(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(Patience):
		t.Fatalf("%s did not end on SIGTERM", p.name)
	}
}

// end signals the program; after SIGKILL it also waits.
func (p *Process) end(signal syscall.Signal) {
	// It may be gone already, which is what is asked for.
	_ = syscall.Kill(-p.cmd.Process.Pid, signal)
	if signal == syscall.SIGKILL {
		<-p.done
	}
}

// Exited returns an error if the program has ended, for use while waiting for something it should do.
func (p *Process) Exited() error {
	select {
	case <-p.done:
		return errors.New(p.name + " has ended: " + p.cmd.ProcessState.String() + "\n" + string(tail(p.Log(), shownLog)))
	default:
		return nil
	}
}

// Log returns what the program has written so far.
func (p *Process) Log() []byte {
	log, err := os.ReadFile(p.log)
	if err != nil {
		return []byte(err.Error())
	}
	return log
}

// tail returns the last n bytes of b.
func tail(b []byte, n int) []byte {
	return b[max(0, len(b)-n):]
}
