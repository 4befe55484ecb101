package memory_test

import (
	"testing"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/store/memory"
	"github.com/tidings-go/tidings/store/storetest"
)

func TestClaims(t *testing.T) {
	stores := make(map[string]*memory.Claims) // one per test
	storetest.Claims(t, func(t *testing.T) driver.Claims {
		if stores[t.Name()] == nil {
			stores[t.Name()] = memory.NewClaims(0)
		}
		return stores[t.Name()]
	})
}

func TestDeadLetters(t *testing.T) {
	stores := make(map[string]*memory.DeadLetters)
	storetest.DeadLetters(t, func(t *testing.T) driver.DeadLetterStore {
		if stores[t.Name()] == nil {
			stores[t.Name()] = &memory.DeadLetters{}
		}
		return stores[t.Name()]
	})
}
