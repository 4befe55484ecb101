package codec_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The wire page lists every case with its sentence, and no case that is not.
func TestWirePage(t *testing.T) {
	content, err := os.ReadFile("../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(content)
	rows := 0
	for _, folder := range []string{"testdata/read", "testdata/write"} {
		paths, err := filepath.Glob(folder + "/*.txt")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			sentence, _, _ := strings.Cut(strings.TrimPrefix(string(text), "proves: "), "\n")
			row := "\n| `" + strings.TrimSuffix(filepath.Base(path), ".txt") + "` | " + sentence + " |"
			if !strings.Contains(page, row) {
				t.Errorf("docs/wire.md lacks %s", row)
			}
			rows++
		}
	}
	if listed := strings.Count(page, "\n| `accepted-") + strings.Count(page, "\n| `repaired-") + strings.Count(page, "\n| `dead-letter-") +
		strings.Count(page, "\n| `domain-event") + strings.Count(page, "\n| `cloudevents-"); listed != rows {
		t.Errorf("docs/wire.md lists %d cases, there are %d", listed, rows)
	}
}
