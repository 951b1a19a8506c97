package interop

import (
	"testing"

	"tailrace.dev/interop/lab"
)

func TestMain(m *testing.M) {
	lab.Main(m)
}
