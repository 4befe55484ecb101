package testtime

import (
	"testing"
	"time"
)

func TestTimesAreDerivedFromOneScale(t *testing.T) {
	t.Setenv(variableScale, "")
	t.Setenv(variablePatience, "")
	if Scaled(time.Second) != time.Second || Patience(time.Second) != time.Second {
		t.Errorf("without a factor: %v, %v", Scaled(time.Second), Patience(time.Second))
	}
	t.Setenv(variableScale, "2.5")
	t.Setenv(variablePatience, "100ms")
	if Scaled(time.Second) != 2500*time.Millisecond || Patience(time.Second) != 250*time.Millisecond {
		t.Errorf("with 2.5 and a patience of 100 ms: %v, %v", Scaled(time.Second), Patience(time.Second))
	}
}

func TestAScaleThatIsNoneStopsTheTests(t *testing.T) {
	for _, text := range []string{"many", "0", "0.5", "-1", "1000", "NaN"} {
		t.Run(text, func(t *testing.T) {
			t.Setenv(variableScale, text)
			defer func() {
				if recover() == nil {
					t.Errorf("it was taken as %v", Scale())
				}
			}()
			Scale()
		})
	}
}
