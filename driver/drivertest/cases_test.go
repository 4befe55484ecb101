package drivertest_test

import (
	"strings"
	"testing"

	"github.com/tidings-go/tidings/driver/drivertest"
)

// The table is read by people: each name once, each sentence a whole one.
func TestCases(t *testing.T) {
	names := map[string]bool{}
	for _, c := range drivertest.Cases() {
		if c.Name == "" || names[c.Name] || strings.ToLower(c.Name) != c.Name {
			t.Errorf("name %q is empty, not in lower case or there twice", c.Name)
		}
		names[c.Name] = true
		if len(strings.Fields(c.Proves)) < 6 || strings.HasSuffix(c.Proves, ".") {
			t.Errorf("case %s proves %q, which is no sentence to print after a colon", c.Name, c.Proves)
		}
	}
}
